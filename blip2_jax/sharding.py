"""The mesh, and the one table that says where every array lives on it.

Axes: `data` (copies of the model), `fsdp` (parameters and optimizer state divided,
batches too) and `tensor` (matrices divided by heads or hidden units). Any may be 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from blip2_jax.exchange import BATCH_AXES

AXES = ("data", "fsdp", "tensor")
P = PartitionSpec

# (path regex, spec); the first full match holds. Blocks of the towers and language
# models are stacked, so their kernels are [L, in, out]. An axis that does not divide
# its dimension is left out. Norms, biases, tokens and small heads are whole.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r".*blocks/.*(output|down)/kernel", P(None, "tensor", "fsdp")),
    (r".*blocks/.*kernel", P(None, "fsdp", "tensor")),
    (r"language_model/.*(token|position)", P("tensor", "fsdp")),
    (r"qformer/embeddings/(word|position)", P(None, "fsdp")),
    (r".*kernel", P("fsdp", None)),
    (r".*", P()),
)


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """The mesh of a run.

    Args:
      data, fsdp, tensor: sizes; one of them may be -1, "all that is left".
      devices: all of them where absent.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    rest = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and len(devices) % rest == 0:
        sizes[sizes.index(-1)] = len(devices) // rest
    if math.prod(sizes) != len(devices) or min(sizes) < 1:
        raise ValueError(
            f"mesh data={data}, fsdp={fsdp}, tensor={tensor} does not cover "
            f"{len(devices)} devices; at most one size may be -1 (the rest)"
        )
    return jax.make_mesh(
        tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def spec_of(
    path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """The table's entry for one parameter, less the axes that do not divide it."""
    rule = next(spec for pattern, spec in RULES if re.fullmatch(pattern, path))
    axes = [*rule, *[None] * (len(shape) - len(rule))][: len(shape)]
    sizes = [1 if axis is None else mesh.shape[axis] for axis in axes]
    placed = zip(axes, sizes, shape, strict=True)
    return P(*[axis if size > 1 and dim % size == 0 else None
               for axis, size, dim in placed])


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf (array or shape) of a tree.

    A leaf's path is made of its dictionary keys alone, so that optimizer state is laid
    out like the parameters that it belongs to.
    """

    def place(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        return NamedSharding(mesh, spec_of("/".join(names), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, tree)


def working_shardings(tree: Any, mesh: Mesh) -> Any:
    """Where parameters are while they compute, as `shardings`.

    `fsdp` divides storage. Single matrices are whole when they are used, so that a
    batch divided over the same axis stays where it is; stacked blocks stay divided, and
    each layer is gathered where it is used (`gather_layer`).
    """

    def gather(keys: tuple[Any, ...], stored: NamedSharding) -> NamedSharding:
        if any(getattr(key, "key", None) == "blocks" for key in keys):
            return stored
        return NamedSharding(mesh, _whole(stored.spec))

    return jax.tree_util.tree_map_with_path(gather, shardings(tree, mesh))


def divides_parameters() -> bool:
    """Whether parameters are stored divided over the current mesh (`jax.set_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape.get("fsdp", 1) > 1


def gather_layer(weights: Any) -> Any:
    """One layer of stacked blocks, whole over `fsdp`; nothing without such an axis.

    Unasked, the compiler leaves the weights divided and gathers the batch instead.

    Args:
      weights: the block's parameters, without the leading axis L.
    """
    if not divides_parameters():
        return weights
    mesh = jax.sharding.get_abstract_mesh()

    def gather(keys: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        path = "/".join(["blocks", *[str(key.key) for key in keys]])
        stored = spec_of(path, (1, *leaf.shape), mesh)
        return jax.lax.with_sharding_constraint(leaf, P(*_whole(stored)[1:]))

    return jax.tree_util.tree_map_with_path(gather, weights)


def _whole(spec: PartitionSpec) -> PartitionSpec:
    """The spec less the axis that divides storage alone."""
    return P(*[None if axis == "fsdp" else axis for axis in spec])


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows divided over the data axes."""
    return NamedSharding(mesh, P(BATCH_AXES))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raise a ValueError, naming the nearest sizes that fit, if this one does not."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size < 1 or batch_size % shards:
        below = max(batch_size // shards * shards, shards)
        raise ValueError(
            f"batch size {batch_size} does not divide over {shards} devices "
            f"(data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}): "
            f"use {below} or {below + shards}"
        )


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Arrays of the whole batch from the rows that this process has read.

    Host-only entries (`position`, and names that begin with "_") stay behind.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
        if name != "position" and not name.startswith("_")
    }


def put(tree: Any, layout: Any) -> Any:
    """Place arrays that every process holds in full; each device takes its part."""

    def place(array: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        )

    return jax.tree.map(place, tree, layout)
