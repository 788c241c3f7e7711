"""Groups of equal blocks of the Q-Former under `lax.scan`, which compiles one of them.

A group is a block with cross-attention and those without that follow it. Parameters
stay those of single blocks, `layer_0`, `layer_1`, ...; they are stacked in the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from blip2_jax.models.qformer.block import LayerInputs
from blip2_jax.nn.attention import KeyValue

Layer = tuple[Mapping[str, Any], LayerInputs]  # parameters and inputs
RunLayer = Callable[[Mapping[str, Any], Array, LayerInputs], tuple[Array, KeyValue]]

MATRICES = ("kernel", "lora_a", "lora_b")  # parameters used in the compute dtype


def scan_groups(
    run_layers: Sequence[RunLayer],
    x: Float[Array, "B S D"],
    layers: Sequence[Layer],
    dtype: DTypeLike,
) -> tuple[Float[Array, "B S D"], list[KeyValue]]:
    """Run the first layers in order, group by group.

    Args:
      run_layers: for each layer of a group, a function of its parameters, x and inputs.
      x: input of the first layer.
      layers: of the whole model. Those of an incomplete group do not run; none run if
        there is one group, or if groups differ in structure (e.g. if only some have
        matrices of LoRA, or only some are frozen and therefore in half precision).
      dtype: compute dtype. Matrices are cast before they are stacked, so that the
        program holds no fp32 copy of them.

    Returns:
      The output of the last layer that ran, and the keys and values of all that ran.
    """
    size = len(run_layers)
    starts = range(0, len(layers) - size + 1, size)
    groups = [tuple(layers[start : start + size]) for start in starts]
    if len(groups) < 2 or len({_structure(group) for group in groups}) > 1:
        return x, []
    cast = [_cast_matrices(group, dtype) for group in groups]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cast)

    def run_group(x: Array, group: PyTree) -> tuple[Array, list[KeyValue]]:
        caches = []
        for run_layer, (params, inputs) in zip(run_layers, group, strict=True):
            x, cache = run_layer(params, x, inputs)
            caches.append(cache)
        return x, caches

    x, caches = jax.lax.scan(run_group, x, stacked)
    return x, [
        jax.tree.map(lambda leaf, index=index: leaf[index], cache)
        for index in range(len(groups))
        for cache in caches
    ]


def _structure(group: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(group)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _cast_matrices(group: PyTree, dtype: DTypeLike) -> PyTree:
    """Cast matrices that are not quantised to the compute dtype."""

    def cast(path: tuple[Any, ...], leaf: Array) -> Array:
        is_matrix = getattr(path[-1], "key", None) in MATRICES
        return leaf.astype(dtype) if is_matrix else leaf

    return jax.tree_util.tree_map_with_path(cast, group)
