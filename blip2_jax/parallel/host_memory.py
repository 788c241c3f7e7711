"""Memory of a host that computes: what compilers leave behind, and programs' order."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import jax
from jax.sharding import Mesh

_COMPILED = "/jax/core/compile/backend_compile_duration"
_LARGE = 2.0  # seconds of compiling: smaller programs leave little
_LITTLE_MEMORY = {"xla_cpu_enable_concurrency_optimized_scheduler": False}


@functools.cache
def trim_memory_after_compiling() -> None:
    """From now on, whenever a large program was compiled, unused memory is given back.

    A compiler frees about a gigabyte in small pieces, and making parameters leaves
    holes of their size. glibc keeps both, and a program's own memory, which is one
    piece, is put beside them. Without glibc nothing happens.
    """
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILED and duration_secs > _LARGE:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(listen)


def disable_async_dispatch() -> None:
    """From now on a program of a CPU is over before the next one begins.

    Otherwise jax tells of a result before it has given back what the program had beside
    it, and a step that follows at once takes a new piece of that size. Call it before
    jax looks for devices. (jax reads no environment variable for this.)
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def low_memory_compiler_options(mesh: Mesh) -> dict[str, Any]:
    """For `jax.jit` of a large program: on a CPU, instructions in a thrifty order.

    XLA's usual order there starts whatever could run beside something else, and so
    keeps more; a training step takes as long in either.
    """
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    return dict(_LITTLE_MEMORY) if is_cpu and _knows_order() else {}


@functools.cache
def _knows_order() -> bool:
    """Whether this version of XLA has the option."""
    try:
        jax.jit(lambda x: x + 1, compiler_options=_LITTLE_MEMORY).lower(0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
