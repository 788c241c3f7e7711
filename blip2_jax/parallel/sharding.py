"""The device mesh and the table of shardings of all arrays.

Mesh axes are `data` (replicas of the model), `fsdp` (shards parameters, optimizer state
and batches) and `tensor` (shards matrices by heads or hidden units). Each may be 1.
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

# (path regex, spec); the first full match applies. Blocks of the towers and language
# models are stacked, so that their kernels are [L, in, out]. An axis that does not
# divide its dimension is dropped. Norms, biases and query tokens are replicated.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r".*blocks/.*(output|down)/kernel", P(None, "tensor", "fsdp")),
    (r".*blocks/.*kernel", P(None, "fsdp", "tensor")),
    # Matrices of LoRA: each has one axis of its kernel and is split as that.
    (r".*blocks/.*(output|down)/lora_a", P(None, "tensor", None)),
    (r".*blocks/.*(output|down)/lora_b", P(None, None, "fsdp")),
    (r".*blocks/.*lora_a", P(None, "fsdp", None)),
    (r".*blocks/.*lora_b", P(None, None, "tensor")),
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
    """Make the mesh of a run.

    Args:
      data: size of the axis; -1 stands for all remaining devices, for one axis only.
      fsdp: see `data`.
      tensor: see `data`.
      devices: devices of the mesh; None takes all.

    Raises:
      ValueError: the product of the sizes is not the number of devices.
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
    """Count the TPU slices of the devices; the network within a slice is fast."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def arrange_slices(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Arrange the devices of several slices as [data, fsdp, tensor].

    The slow network between slices gets the axis with the least traffic: `data` (the
    gradients, once a step) or, if `data` is too small, `fsdp`.

    Raises:
      ValueError: neither axis is a multiple of the number of slices.
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
    """Look up a parameter's spec in `RULES`, without axes that do not divide it."""
    rule = next(spec for pattern, spec in RULES if re.fullmatch(pattern, path))
    axes = [*rule, *[None] * (len(shape) - len(rule))][: len(shape)]
    sizes = [1 if axis is None else mesh.shape[axis] for axis in axes]
    dimensions = zip(axes, sizes, shape, strict=True)
    return P(
        *[
            axis if size > 1 and dim % size == 0 else None
            for axis, size, dim in dimensions
        ]
    )


def split_over_data(
    spec: PartitionSpec, shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Split an array over the axis `data` too, along the first dimension it divides.

    Args:
      spec: from `parameter_spec`.
      shape: shape of the array. If `data` divides no dimension, the spec is returned
        unchanged.
      mesh: the mesh.
    """
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    for i, (axis, dim) in enumerate(zip(spec, shape, strict=True)):
        if axis == "fsdp" and dim % (data * fsdp) == 0:
            return P(*spec[:i], BATCH_AXES, *spec[i + 1 :])
        if axis is None and dim % data == 0 and dim > 1:
            return P(*spec[:i], "data", *spec[i + 1 :])
    return spec


def tree_shardings(tree: Any, mesh: Mesh, over_data: bool = False) -> Any:
    """Return a NamedSharding for every leaf (array or shape) of a tree.

    The path of a leaf consists of its dictionary keys only, so that optimizer state is
    sharded like the parameters it belongs to.

    Args:
      tree: nested parameters, or the state of an optimizer.
      mesh: the mesh.
      over_data: split arrays over the axis `data` too (`split_over_data`).
    """

    def leaf_sharding(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        path = "/".join(_dict_keys(keys))
        spec = parameter_spec(path, leaf.shape, mesh)
        if over_data and mesh.shape["data"] > 1:
            spec = split_over_data(spec, leaf.shape, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def compute_shardings(tree: Any, mesh: Mesh) -> Any:
    """Return the shardings of parameters during computation.

    The axis `fsdp` shards storage only. Single matrices are gathered before use, so
    that a batch sharded over the same axis stays in place. Stacked blocks stay sharded,
    and each layer is gathered where it is used (`gather_layer`).
    """

    def gather(keys: tuple[Any, ...], stored: NamedSharding) -> NamedSharding:
        if any(getattr(key, "key", None) == "blocks" for key in keys):
            return stored
        return NamedSharding(mesh, _without_fsdp(stored.spec))

    return jax.tree_util.tree_map_with_path(gather, tree_shardings(tree, mesh))


def is_parameter_sharded() -> bool:
    """Return True if the current mesh (`jax.set_mesh`) shards parameters."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape.get("fsdp", 1) > 1


def gather_layer(weights: Any) -> Any:
    """Gather one layer of stacked blocks over `fsdp`; do nothing without that axis.

    Without this constraint the compiler keeps the weights sharded and gathers the
    batch instead.

    Args:
      weights: the block's parameters, without the leading axis L.
    """
    if not is_parameter_sharded():
        return weights
    mesh = jax.sharding.get_abstract_mesh()

    def gather(keys: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        path = "/".join(["blocks", *_dict_keys(keys)])
        stored = parameter_spec(path, (1, *leaf.shape), mesh)
        return jax.lax.with_sharding_constraint(leaf, P(*_without_fsdp(stored)[1:]))

    return jax.tree_util.tree_map_with_path(gather, weights)


def _dict_keys(keys: tuple[Any, ...]) -> list[str]:
    """Return the names of a leaf's path, without those of quantised parts."""
    return [str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey)]


def _without_fsdp(spec: PartitionSpec) -> PartitionSpec:
    """Drop the axis that shards storage only."""
    return P(*[None if axis == "fsdp" else axis for axis in spec])


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds in full."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of rows over the batch axes."""
    return NamedSharding(mesh, P(BATCH_AXES))


def batch_shards(mesh: Mesh) -> int:
    """Return the number of shards of a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, mesh: Mesh, chunks: int = 1) -> None:
    """Check that a batch size divides over the batch axes and chunks of a mesh.

    Raises:
      ValueError: it does not; the message names the nearest sizes that do.
    """
    parts = batch_shards(mesh) * chunks
    if batch_size < 1 or batch_size % parts:
        below = max(batch_size // parts * parts, parts)
        in_chunks = f" in {chunks} chunks each" if chunks > 1 else ""
        raise ValueError(
            f"batch size {batch_size} does not divide over {batch_shards(mesh)} "
            f"devices{in_chunks} (data {mesh.shape['data']} x fsdp "
            f"{mesh.shape['fsdp']}): use {below} or {below + parts}"
        )


def local_rows(batch_size: int, mesh: Mesh) -> Int[np.ndarray, " rows"]:
    """Return the sorted indices of the global rows that this process's devices hold.

    Shares of processes may overlap: if a `tensor` axis spans processes, several of them
    read the same rows.
    """
    rows = np.arange(batch_size)
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([rows[index] for index in indices.values()]))


def make_global_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
    """Make arrays of the global batch from the `local_rows` that this process has read.

    Host-only entries (`position`, and names that begin with "_") are left out.
    """
    sharding, shards = batch_sharding(mesh), batch_shards(mesh)
    local_shards = len(local_rows(shards, mesh))

    def make_global(rows: np.ndarray) -> jax.Array:
        size = len(rows) * shards // local_shards
        local = local_rows(size, mesh)

        def read(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            first = np.searchsorted(local, start)
            return rows[first : first + stop - start]

        return make_sharded_array((size, *rows.shape[1:]), sharding, read, rows.dtype)

    return {
        name: make_global(np.asarray(rows))
        for name, rows in batch.items()
        if name != "position" and not name.startswith("_")
    }


def place_rows_like(params: Any, rows: Any) -> Any:
    """Shard arrays of rows over the mesh of the parameters that they are used with.

    Args:
      params: a tree of parameters. If they are on no mesh, or on a mesh of one device,
        the rows are returned unchanged.
      rows: a tree of host arrays, the same in every process. Arrays whose rows do not
        divide over the batch axes are replicated.
    """
    leaves = jax.tree.leaves(params)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    if not arrays or not isinstance(arrays[0].sharding, NamedSharding):
        return rows
    mesh = arrays[0].sharding.mesh
    if not isinstance(mesh, Mesh) or mesh.size == 1:
        return rows

    def place(array: Any) -> jax.Array:
        divides = np.shape(array)[0] % batch_shards(mesh) == 0
        return shard_tree(array, batch_sharding(mesh) if divides else replicated(mesh))

    return jax.tree.map(place, rows)


def shard_tree(tree: Any, shardings: Any) -> Any:
    """Shard a tree of host arrays that every process holds in full."""

    def place(array: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(array)
        return make_sharded_array(array.shape, sharding, array.__getitem__, array.dtype)

    return jax.tree.map(place, tree, shardings)


def make_sharded_array(
    shape: tuple[int, ...], sharding: NamedSharding, read: ReadSlice, dtype: Any
) -> jax.Array:
    """Make a sharded array without holding it in full anywhere.

    Args:
      shape: shape of the whole array.
      sharding: sharding of the result.
      read: returns the part at an index; called once for each part that this process's
        devices hold.
      dtype: dtype of the result.
    """
    parts: dict[str, np.ndarray] = {}

    def read_once(index: tuple[slice, ...] | None) -> np.ndarray:
        if (key := str(index)) not in parts:
            parts[key] = read(index or ()).astype(dtype, copy=False)
        return parts[key]

    # The transfer guard of the training loop would count this as an implicit transfer.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(shape, sharding, read_once)
