"""Check the array annotations of the package at every call."""

import re
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# jaxtyping's annotations; mypy checks the others.
ANNOTATION = re.compile(r"\b(Bool|Float|Inexact|Int|Integer|Num|Shaped|UInt|UInt8)\[")
# Shapes and dtypes count, not who made the array: NumPy, JAX or `jax.eval_shape`.
ARRAY_TYPE = re.compile(r"\[(jax\.Array|Array|np\.ndarray|ndarray),")


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Raise where an argument or result does not have its annotated shape and dtype."""
    hints = {
        name: eval(ARRAY_TYPE.sub("[Any,", hint), {**function.__globals__, "Any": Any})
        for name, hint in getattr(function, "__annotations__", {}).items()
        if isinstance(hint, str) and ANNOTATION.search(hint)
    }
    if not hints:
        return function
    function.__annotations__ = hints
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
