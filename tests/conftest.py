"""Shared by all tests: 8 virtual CPU devices, the goldens, the optional test data."""

import gc
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests are bound by compilation: machine code without optimisation takes half the time
# and computes the same. `make demo` and the benchmarks run what users run.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

# What one worker, or a command that a test runs, has compiled the others take. The first
# process of the run makes the folder; the rest inherit its name.
MADE_HERE = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    MADE_HERE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags

# transformers imports torchvision where it finds it, and breaks where the build does
# not fit torch. No test needs it.
sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]

GOLDENS = pathlib.Path(__file__).parent / "goldens"


def pytest_unconfigure() -> None:
    """The compiled programs of this run are of no use to the next."""
    if MADE_HERE:
        shutil.rmtree(MADE_HERE, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """A file's compiled programs end with it.

    Each takes memory maps, of which Linux allows a process 65,530: the compiler crashes
    where there are no more, and the whole suite would come close.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def goldens() -> pathlib.Path:
    """Numbers computed by the original implementation (random tiny weights)."""
    return GOLDENS


@pytest.fixture(scope="session")
def testdata() -> pathlib.Path:
    """Real photos, captions and vocabularies; the test is skipped without them."""
    path = os.environ.get("BLIP2_JAX_TESTDATA")
    if not path:
        pytest.skip("BLIP2_JAX_TESTDATA is not set: real photos are not at hand")
    return pathlib.Path(path)
