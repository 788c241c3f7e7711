"""Settings that lower the memory of a host that compiles and runs programs."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import jax
from jax.sharding import Mesh

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_MIN_COMPILE_S = 2.0  # shorter compilations leave little memory behind
_LOW_MEMORY_OPTIONS = {"xla_cpu_enable_concurrency_optimized_scheduler": False}


@functools.cache
def trim_memory_after_compiling() -> None:
    """Return unused memory to the system after every compilation of a large program.

    The compiler frees about a gigabyte in small pieces, and initialising parameters
    leaves holes of their size. glibc keeps both, and a program's own memory, which is
    one piece, is allocated beside them. Without glibc this does nothing.
    """
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILE_EVENT and duration_secs > _MIN_COMPILE_S:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(listen)


def disable_async_dispatch() -> None:
    """Make JAX on a CPU finish each program before it starts the next one.

    With asynchronous dispatch a result is available before the program's temporary
    memory is freed, so that the next step allocates the same amount again. Call this
    before JAX initialises its devices; there is no environment variable for it.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def low_memory_compiler_options(mesh: Mesh) -> dict[str, Any]:
    """Return `compiler_options` of `jax.jit` that lower a program's memory on a CPU.

    XLA's default scheduler on a CPU maximises concurrency, which keeps more arrays
    alive. A training step takes the same time with either scheduler.
    """
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    return dict(_LOW_MEMORY_OPTIONS) if is_cpu and _has_scheduler_option() else {}


@functools.cache
def _has_scheduler_option() -> bool:
    """Return True if this version of XLA has the scheduler option."""
    try:
        jax.jit(lambda x: x + 1, compiler_options=_LOW_MEMORY_OPTIONS).lower(
            0
        ).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
