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

import jax
import pytest
from absl import flags
from jaxtyping import install_import_hook

from tests.support import shape_checks
from tests.support.goldens import GOLDENS

# Shape annotations are checked at every call: they stay true.
install_import_hook("blip2_jax", f"{shape_checks.__name__}.check_arrays")

flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags

# transformers imports torchvision where it finds it, and breaks where the build does
# not fit torch. No test needs it.
sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]


COMPILED = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Share compiled programs among the processes of this run.

    The first makes the folder, whose name workers and commands under test inherit.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = config.stash[COMPILED] = tempfile.mkdtemp()
    for name, value in {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Delete the compiled programs of this run."""
    if COMPILED in config.stash:
        shutil.rmtree(config.stash[COMPILED], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Drop the compiled programs of a file after its last test.

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
