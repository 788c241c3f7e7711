"""Compiled functions that keep a bounded number of programs.

`jax.jit` keeps every program for the life of the process: one for each shape of its
inputs and each static argument. A server that sees prompts of all lengths would grow
without bound.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

# Programs that a function keeps. When it has more, all are dropped, and those in use
# are compiled again, or read from JAX's compilation cache.
MAX_PROGRAMS = 32


def compile_function(
    *, static: Sequence[str]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a decorator that compiles a function and bounds its programs.

    Args:
      static: names of the static arguments.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Any = jax.jit(function, static_argnames=tuple(static))

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if compiled._cache_size() > MAX_PROGRAMS:
                compiled.clear_cache()
            return compiled(*args, **kwargs)

        call.compiled = compiled  # type: ignore[attr-defined]
        return call

    return decorate
