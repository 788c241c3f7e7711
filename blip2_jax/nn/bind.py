"""A module together with its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jaxtyping import PyTree


def bind(module: nn.Module, params: PyTree) -> Callable[..., Any]:
    """`apply(method, *arguments, **keywords)`: runs a method, named, with parameters.

    `Module.apply` says that it may also return variables which the method changed.
    Nothing here is mutable, so the result is what the method returns, and no more.
    """
    return lambda method, *args, **kwargs: module.apply(
        {"params": params}, *args, method=method, **kwargs
    )
