"""Products of few rows with weights, the way a CPU reads weights fastest.

Decoding multiplies every matrix with one row a beam: its time is that of reading the
weights. XLA's CPU backend reads a left operand, contracted along its last axis, at
two thirds of the speed of a plain matrix-vector product, the usual order at a third.
The hundred rows of prompts are not slower in that order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, PyTree

from blip2_jax.nn.precision import as_rows, einsum_fp32

KERNEL = "kernel"


def matvec(
    weights: Float[Array, "outputs inputs"], x: Float[Array, "... inputs"]
) -> Float[Array, "... outputs"]:
    """`x @ weights.T` in fp32, with the weights as the left operand."""
    # The barrier keeps the compiler from turning the operands round again.
    found = jax.lax.optimization_barrier(einsum_fp32("nk,rk->nr", weights, as_rows(x)))
    return found.T.reshape(*x.shape[:-1], -1)


def transpose_kernels(params: PyTree) -> PyTree:
    """Parameters of a block for `dense_layers`: every kernel [out, in]."""

    def turn(path: tuple[Any, ...], leaf: Array) -> Array:
        return leaf.T if path[-1].key == KERNEL else leaf

    return jax.tree_util.tree_map_with_path(turn, params)


def dense_layers(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """For `nn.intercept_methods`: dense layers whose kernels are `transpose_kernels`."""
    layer = context.module
    if not isinstance(layer, nn.Dense) or context.method_name != "__call__":
        return call(*args, **kwargs)
    kernel: Array = layer.get_variable("params", KERNEL)
    weights = kernel.astype(layer.dtype)
    found = matvec(weights, args[0].astype(layer.dtype)).astype(layer.dtype)
    if layer.use_bias:
        found += layer.get_variable("params", "bias").astype(layer.dtype)
    return found
