"""Rows of a batch that other devices hold: the exchange of sampled negatives.

Every text is matched against a negative image drawn from the *global* batch, so that
a device needs a few rows of the others' frozen features. Gathering the whole global
batch costs its memory on every device (1.2 GB at 1,680 ViT-g images); a ring passes
one shard at a time and keeps only the rows that were asked for.
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
    """Axes of the current mesh (`jax.set_mesh`) over which a batch is divided."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    return tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)


def gather_global_rows(
    rows: Shaped[Array, "B ..."], index: Int[Array | np.ndarray, "B"]
) -> Shaped[Array, "B ..."]:
    """`rows[index]` with memory of one shard per device.

    Args:
      rows: divided over the batch axes of the current mesh, or whole.
      index: which global row each row of the result is.

    Returns:
      The rows asked for, divided like `rows`. Gradients flow back to their owners.
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
    """Pass shards around; at turn t a device holds the shard of its t-th neighbour."""
    me = jax.lax.axis_index(axes)
    held = rows.shape[0]
    owner, place = index // held, index % held
    onward = [(device, (device + 1) % shards) for device in range(shards)]

    def turn(carry, t):
        passing, taken = carry
        passing = jax.lax.ppermute(passing, axes, onward)
        mine = (owner == (me - t) % shards).reshape((-1,) + (1,) * (rows.ndim - 1))
        return (passing, jnp.where(mine, passing[place], taken)), None

    # Rows that others hold take these wrong ones' place when their shard comes by.
    own = rows[place]
    (_, taken), _ = jax.lax.scan(turn, (rows, own), jnp.arange(1, shards))
    return taken
