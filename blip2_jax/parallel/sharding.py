"""The mesh, and the one table that says where every array lives on it.

Axes: `data` (copies of the model), `fsdp` (parameters and optimizer state divided,
batches too) and `tensor` (matrices divided by heads or hidden units). Any may be 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from blip2_jax.parallel.row_gather import BATCH_AXES

AXES = ("data", "fsdp", "tensor")
ReadSlice = Callable[[tuple[slice, ...]], np.ndarray]
P = PartitionSpec

# (path regex, spec); the first full match holds. Blocks of the towers and language
# models are stacked, so their kernels are [L, in, out]. An axis that does not divide
# its dimension is left out. Norms, biases and query tokens are whole.
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
    auto = (AxisType.Auto,) * 3
    if devices[0].platform == "tpu" and count_slices(devices) > 1:
        return Mesh(arrange_slices(sizes, devices), AXES, axis_types=auto)
    return jax.make_mesh(tuple(sizes), AXES, axis_types=auto, devices=devices)


def count_slices(devices: Sequence[Any]) -> int:
    """How many TPU slices they belong to; within one, the network is fast."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def arrange_slices(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Devices of several slices as [data, fsdp, tensor].

    The slow network between slices carries `data`, whose traffic is least: gradients,
    once a step; where `data` is too small, `fsdp`.

    Raises:
      ValueError: neither is a multiple of the number of slices.
    """
    slices = count_slices(devices)
    axis = next((i for i in (0, 1) if sizes[i] % slices == 0), None)
    if axis is None:
        raise ValueError(
            f"mesh data={sizes[0]}, fsdp={sizes[1]} on {slices} slices: one of the two "
            f"must be a multiple of {slices}"
        )
    between = [slices if i == axis else 1 for i in range(3)]
    within = [size // part for size, part in zip(sizes, between, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )


def parameter_spec(
    path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """The table's entry for one parameter, less the axes that do not divide it."""
    rule = next(spec for pattern, spec in RULES if re.fullmatch(pattern, path))
    axes = [*rule, *[None] * (len(shape) - len(rule))][: len(shape)]
    sizes = [1 if axis is None else mesh.shape[axis] for axis in axes]
    placed = zip(axes, sizes, shape, strict=True)
    return P(
        *[axis if size > 1 and dim % size == 0 else None for axis, size, dim in placed]
    )


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf (array or shape) of a tree.

    A leaf's path is made of its dictionary keys alone, so that optimizer state is laid
    out like the parameters that it belongs to.
    """

    def place(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        return NamedSharding(mesh, parameter_spec("/".join(names), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, tree)


def compute_shardings(tree: Any, mesh: Mesh) -> Any:
    """Where parameters are while they compute, as `tree_shardings`.

    `fsdp` divides storage. Single matrices are whole when they are used, so that a
    batch divided over the same axis stays where it is; stacked blocks stay divided, and
    each layer is gathered where it is used (`gather_layer`).
    """

    def gather(keys: tuple[Any, ...], stored: NamedSharding) -> NamedSharding:
        if any(getattr(key, "key", None) == "blocks" for key in keys):
            return stored
        return NamedSharding(mesh, _whole(stored.spec))

    return jax.tree_util.tree_map_with_path(gather, tree_shardings(tree, mesh))


def is_parameter_sharded() -> bool:
    """Whether parameters are stored divided over the current mesh (`jax.set_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape.get("fsdp", 1) > 1


def gather_layer(weights: Any) -> Any:
    """One layer of stacked blocks, whole over `fsdp`; nothing without such an axis.

    Unasked, the compiler leaves the weights divided and gathers the batch instead.

    Args:
      weights: the block's parameters, without the leading axis L.
    """
    if not is_parameter_sharded():
        return weights
    mesh = jax.sharding.get_abstract_mesh()

    def gather(keys: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        path = "/".join(["blocks", *[str(key.key) for key in keys]])
        stored = parameter_spec(path, (1, *leaf.shape), mesh)
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


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is divided."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, mesh: Mesh, chunks: int = 1) -> None:
    """Raise a ValueError, naming the nearest sizes that fit, if this one does not."""
    parts = batch_shards(mesh) * chunks
    if batch_size < 1 or batch_size % parts:
        below = max(batch_size // parts * parts, parts)
        in_turn = f" in {chunks} chunks each" if chunks > 1 else ""
        raise ValueError(
            f"batch size {batch_size} does not divide over {batch_shards(mesh)} "
            f"devices{in_turn} (data {mesh.shape['data']} x fsdp "
            f"{mesh.shape['fsdp']}): use {below} or {below + parts}"
        )


def local_rows(batch_size: int, mesh: Mesh) -> Int[np.ndarray, " rows"]:
    """Which rows of a global batch this process's devices hold, in order.

    Not always an equal share: where a `tensor` axis spans processes, several of them
    read the same rows.
    """
    rows = np.arange(batch_size)
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([rows[index] for index in places.values()]))


def make_global_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
    """Arrays of the whole batch from the `local_rows` that this process has read.

    Host-only entries (`position`, and names that begin with "_") stay behind.
    """
    sharding, shards = batch_sharding(mesh), batch_shards(mesh)
    held = len(local_rows(shards, mesh))

    def place(rows: np.ndarray) -> jax.Array:
        size = len(rows) * shards // held
        mine = local_rows(size, mesh)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            first = np.searchsorted(mine, start)
            return rows[first : first + stop - start]

        return make_sharded_array((size, *rows.shape[1:]), sharding, part, rows.dtype)

    return {
        name: place(np.asarray(rows))
        for name, rows in batch.items()
        if name != "position" and not name.startswith("_")
    }


def place_rows_like(params: Any, rows: Any) -> Any:
    """Arrays of rows, divided over the mesh where parameters are, to be used with them.

    Args:
      params: a tree; where it lies on no mesh, or on one device, rows stay as they are.
      rows: a tree of host arrays, the same in every process; those whose rows do not
        divide are put on every device in full.
    """
    placed = [
        leaf.sharding for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)
    ]
    if not placed or not isinstance(placed[0], NamedSharding):
        return rows
    mesh = placed[0].mesh
    if not isinstance(mesh, Mesh) or mesh.size == 1:
        return rows

    def place(array: Any) -> jax.Array:
        divides = np.shape(array)[0] % batch_shards(mesh) == 0
        return shard_tree(array, batch_sharding(mesh) if divides else replicated(mesh))

    return jax.tree.map(place, rows)


def shard_tree(tree: Any, layout: Any) -> Any:
    """Place arrays that every process holds in full; each device takes its part."""

    def place(array: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(array)
        return make_sharded_array(array.shape, sharding, array.__getitem__, array.dtype)

    return jax.tree.map(place, tree, layout)


def make_sharded_array(
    shape: tuple[int, ...], layout: NamedSharding, read: ReadSlice, dtype: Any
) -> jax.Array:
    """Place an array that need not be held in full anywhere.

    Args:
      read: gives the part at an index; asked once for each part that this process's
        devices hold.
      dtype: to cast parts to.
    """
    parts: dict[str, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        if (name := str(index)) not in parts:
            parts[name] = read(index or ()).astype(dtype, copy=False)
        return parts[name]

    with jax.transfer_guard_host_to_device("allow"):  # jax takes it for an accident
        return jax.make_array_from_callback(shape, layout, part)
