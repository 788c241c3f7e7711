"""Gather of rows of the global batch by index, for sampled hard negatives.

ITM matches every text against a negative image of the *global* batch, so that a device
needs a few rows of other devices' frozen features. Gathering the whole global batch
would need its memory on every device (1.2 GB at 1,680 ViT-g images). A ring instead
passes one shard at a time, and each device keeps only the rows that it needs.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, Shaped

BATCH_AXES = ("data", "fsdp")


def batch_axes() -> tuple[str, ...]:
    """Return the axes of the current mesh (`jax.set_mesh`) that shard a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    return tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)


def gather_global_rows(
    rows: Shaped[Array, "B ..."], index: Int[Array | np.ndarray, "B"]
) -> Shaped[Array, "B ..."]:
    """Compute `rows[index]` with the memory of one shard per device.

    Args:
      rows: rows of the global batch, sharded over the batch axes of the current mesh.
      index: for each row of the result, its index in the global batch.

    Returns:
      The gathered rows, sharded like `rows`. Gradients flow back to their source rows.
    """
    axes = batch_axes()
    if not axes:
        return rows[index]
    mesh = jax.sharding.get_abstract_mesh()
    shards = math.prod(mesh.shape[axis] for axis in axes)
    spec = PartitionSpec(axes)
    ring = jax.shard_map(
        lambda r, i: _ring(r, i, axes, shards),
        in_specs=(spec, spec),
        out_specs=spec,
        axis_names=set(axes),
    )
    return ring(rows, index)


def _ring(
    rows: jax.Array, index: jax.Array, axes: tuple[str, ...], shards: int
) -> jax.Array:
    """Pass shards around a ring: after t steps a device holds its t-th neighbour's."""
    device = jax.lax.axis_index(axes)
    shard_size = rows.shape[0]
    owner, offset = index // shard_size, index % shard_size
    to_next = [(source, (source + 1) % shards) for source in range(shards)]

    def step(carry, t):
        shard, gathered = carry
        shard = jax.lax.ppermute(shard, axes, to_next)
        in_shard = owner == (device - t) % shards
        in_shard = in_shard.reshape((-1,) + (1,) * (rows.ndim - 1))
        return (shard, jnp.where(in_shard, shard[offset], gathered)), None

    # Rows of other shards are wrong here and are overwritten when their shard arrives.
    initial = rows[offset]
    (_, gathered), _ = jax.lax.scan(step, (rows, initial), jnp.arange(1, shards))
    return gathered
