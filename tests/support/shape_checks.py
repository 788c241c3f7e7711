"""Check the array annotations of the package at every call."""

import re
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# jaxtyping's annotations; mypy checks the others.
ARRAYS = re.compile(r"\b(Bool|Float|Inexact|Int|Integer|Num|Shaped|UInt|UInt8)\[")


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Raise where an argument or result does not have its annotated shape and dtype."""
    hints = getattr(function, "__annotations__", {})
    arrays = {name: hint for name, hint in hints.items() if ARRAYS.search(str(hint))}
    if not arrays:
        return function
    function.__annotations__ = arrays
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
