"""Decoding on a CPU with weights stored in the layout that it reads fastest.

A decoding step multiplies every weight matrix by a few rows, one per beam, so it takes
as long as reading the weights. Two things double its speed on a CPU:

- Layers are separate arrays. Slicing a layer out of a stacked array copies it at every
  step, which takes several times as long as reading it.
- Kernels are stored [out, in] and are the left operand of the matmul. XLA's CPU backend
  reads them at two thirds of the speed of a matrix-vector product, and at one third in
  the usual order. A prompt of a hundred rows is as fast in either order.

`Stack.unstacked_weights` makes such weights and `Stack` runs them with `run_layers`.
Programs for a TPU or GPU never get them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, PyTree

from blip2_jax.nn.precision import as_rows, einsum_fp32
from blip2_jax.nn.quantized import is_quantized

KERNEL = "kernel"


def matvec(
    weights: Float[Array, "outputs inputs"], x: Float[Array, "... inputs"]
) -> Float[Array, "... outputs"]:
    """Compute `x @ weights.T` in fp32 with the weights as left operand."""
    # The barrier keeps XLA from swapping the operands back.
    out = jax.lax.optimization_barrier(einsum_fp32("vd,rd->vr", weights, as_rows(x)))
    return out.T.reshape(*x.shape[:-1], -1)


def transpose_kernels(params: PyTree) -> PyTree:
    """Transpose every kernel of a block to [out, in], but not quantised ones."""

    def transpose(path: tuple[Any, ...], leaf: Any) -> Any:
        return leaf if is_quantized(leaf) or path[-1].key != KERNEL else leaf.T

    return jax.tree_util.tree_map_with_path(transpose, params, is_leaf=is_quantized)


def run_layers(
    run_block: Callable[..., tuple[PyTree, PyTree]],
    layers: list[PyTree],
    x: PyTree,
    per_layer: PyTree,
) -> tuple[PyTree, PyTree]:
    """Run blocks whose kernels are transposed, one after the other.

    Args:
      run_block: `(x, (params, extra)) -> (x, output)`.
      layers: parameters of each block, from `transpose_kernels`.
      x: input of the first block.
      per_layer: tree of lists with one element per layer, or None.

    Returns:
      The last block's `x`, and the outputs as a tree of lists.
    """
    is_list = lambda leaf: isinstance(leaf, list)
    outputs = []
    with nn.intercept_methods(_call_transposed):
        for index, params in enumerate(layers):
            take = lambda leaf, index=index: leaf[index]
            extra = jax.tree.map(take, per_layer, is_leaf=is_list)
            x, output = run_block(x, (params, extra))
            outputs.append(output)
    return x, jax.tree.map(lambda *leaves: list(leaves), *outputs)


def _call_transposed(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Call a dense layer whose kernel is transposed; call other modules unchanged."""
    layer = context.module
    if not isinstance(layer, nn.Dense) or context.method_name != "__call__":
        return call(*args, **kwargs)
    kernel: Any = layer.get_variable("params", KERNEL)
    if is_quantized(kernel):
        return call(*args, **kwargs)
    weights = kernel.astype(layer.dtype)
    out = matvec(weights, args[0].astype(layer.dtype)).astype(layer.dtype)
    if layer.use_bias:
        out += layer.get_variable("params", "bias").astype(layer.dtype)
    return out
