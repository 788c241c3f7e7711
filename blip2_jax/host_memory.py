"""Memory of the host that compilers leave behind goes back to the system."""

from __future__ import annotations

import ctypes
import functools

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"
_LARGE = 2.0  # seconds of compiling: smaller programs leave little


@functools.cache
def give_back_after_compiling() -> None:
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
