"""Shared by all tests: 8 virtual CPU devices, the goldens, the optional test data."""

import gc
import importlib.metadata
import os
import pathlib
import sys
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the real hub
# Tests are bound by compilation. Without optimisation and as one module, a program
# compiles in half the time and computes the same. The emitters of fused operations take
# two thirds of the rest in jaxlib 0.10; later releases are fast and have no such flag.
# `make demo` and the benchmarks run what users run.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false"
        if importlib.metadata.version("jaxlib").startswith("0.10.")
        else "",
    ]
)

import jax
import pytest
from absl import flags
from jaxtyping import install_import_hook

from tests.support import object_stores, shape_checks
from tests.support.goldens import GOLDENS

# Shape annotations are checked at every call: they stay true.
install_import_hook("blip2_jax", f"{shape_checks.__name__}.check_arrays")

flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags

# transformers imports torchvision where it finds it, and breaks where the build does
# not fit torch. No test needs it.
sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]


# Linux allows a process 65,530 memory maps; a test file adds at most 15,000.
MAX_MEMORY_MAPS = 30_000


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled programs for the other processes of this run and for later runs.

    Workers of xdist and commands under test inherit the directory's name.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    for name, value in {
        "jax_compilation_cache_dir": str(config.rootpath / "build/test_programs"),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def _memory_maps() -> int:
    try:
        return pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # not Linux
        return sys.maxsize


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Drop compiled programs after a file where they hold many memory maps.

    The compiler crashes where the process may have no more.
    """
    yield
    if _memory_maps() > MAX_MEMORY_MAPS:
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


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """Run an emulator of S3 for all tests of this process."""
    with object_stores.s3_server() as url:
        yield url


@pytest.fixture
def s3(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[object_stores.S3]:
    """Make a bucket for one test."""
    with object_stores.use_store(s3_url, monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def flaky_s3(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[object_stores.S3, object_stores.FlakyProxy]]:
    """Make a bucket behind a proxy that fails as it is told."""
    with object_stores.flaky_store(s3_url, monkeypatch) as bucket_and_proxy:
        yield bucket_and_proxy


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run an emulator of GCS with a bucket for one test; return "gs://BUCKET"."""
    with object_stores.gcs_store(monkeypatch) as root:
        yield root
