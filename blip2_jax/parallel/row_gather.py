"""Gather of rows of the global batch by index, for sampled hard negatives.

ITM matches every text against a negative image of the *global* batch, so that a device
needs a few rows of other devices' frozen features. Gathering the whole global batch
would need its memory on every device (1.2 GB at 1,680 ViT-g images). Two exchanges keep
the memory of one shard:

- "ragged": every device sends the rows that were drawn to those that drew them
  (`jax.lax.ragged_all_to_all`). A device sends and receives as many rows as its shard
  has, however many devices there are. Compiled for TPUs only; XLA's CPU backend lacks
  the collective.
- "ring": shards pass around a ring, and each device keeps the rows that it needs. The
  traffic grows with the number of devices.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

BATCH_AXES = ("data", "fsdp")
EXCHANGES = ("auto", "ragged", "ring")


def batch_axes() -> tuple[str, ...]:
    """Return the axes of the current mesh (`jax.set_mesh`) that shard a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    return tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)


def gather_global_rows(
    rows: Shaped[Array, "B ..."],
    index: Int[Array | np.ndarray, "B"],
    exchange: str = "auto",
) -> Shaped[Array, "B ..."]:
    """Compute `rows[index]` with the memory of one shard per device.

    Args:
      rows: rows of the global batch, sharded over the batch axes of the current mesh.
      index: for each row of the result, its index in the global batch.
      exchange: "ragged", "ring", or "auto" for "ragged" in programs for TPUs and "ring"
        in others. Without a mesh of several devices it makes no difference.

    Returns:
      The gathered rows, sharded like `rows`. Gradients flow back to their source rows.
    """
    axes = batch_axes()
    if not axes:
        return rows[index]
    mesh = jax.sharding.get_abstract_mesh()
    shards = math.prod(mesh.shape[axis] for axis in axes)
    ring = functools.partial(_ring, axes, shards)
    ragged = functools.partial(_ragged, axes, shards)

    def gather(rows: jax.Array, index: jax.Array) -> jax.Array:
        if exchange == "auto":
            return jax.lax.platform_dependent(rows, index, tpu=ragged, default=ring)
        return (ring if exchange == "ring" else ragged)(rows, index)

    spec = PartitionSpec(axes)
    sharded = jax.shard_map(
        gather, in_specs=(spec, spec), out_specs=spec, axis_names=set(axes)
    )
    return sharded(rows, index)


def verify_exchange(mesh: Mesh, exchange: str) -> None:
    """Exchange a few numbered rows on a mesh, if `exchange` selects "ragged" there.

    A collective that delivered wrong rows would not stop a run; its hard negatives
    would just be other images than those that were drawn.

    Raises:
      ValueError: rows arrived that were not asked for.
    """
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    if exchange == "ring" or (exchange == "auto" and not on_tpu):
        return
    with jax.set_mesh(mesh):
        axes = batch_axes()
        size = 3 * math.prod(mesh.shape[axis] for axis in axes)

        def count_wrong_rows() -> jax.Array:
            spread = NamedSharding(mesh, PartitionSpec(axes))
            index = jax.lax.with_sharding_constraint(jnp.arange(size), spread)
            drawn = index**2 % size  # some rows several times, some never
            expected = _numbered_rows(drawn)
            rows = gather_global_rows(_numbered_rows(index), drawn, exchange)
            return jnp.sum(rows != expected)

        wrong = int(
            jax.jit(
                count_wrong_rows, out_shardings=NamedSharding(mesh, PartitionSpec())
            )()
        )
    if wrong:
        raise ValueError(
            f"the exchange of hard negatives by ragged_all_to_all delivers wrong rows "
            f"on these {mesh.size} devices ({mesh.devices.flat[0].device_kind}): set "
            "config.objective.exchange=ring, and report it with the versions of jax "
            "and libtpu"
        )


def _numbered_rows(index: Int[Array, " B"]) -> Shaped[Array, "B 16 128"]:
    """Make bf16 rows that hold their number: its parts below and from 256 on."""
    parts = jnp.stack([index % 256, index // 256], axis=1).astype(jnp.bfloat16)
    return jnp.tile(parts[:, :, None], (1, 8, 128))


def _ring(
    axes: tuple[str, ...], shards: int, rows: jax.Array, index: jax.Array
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


# JAX's transpose of the collective would write, not add, the gradients of a row that
# several devices drew. The ring's adds them; it runs only if encoders are trained.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ragged(
    axes: tuple[str, ...], shards: int, rows: jax.Array, index: jax.Array
) -> jax.Array:
    """Send each drawn row from its owner, slot by slot of the devices' results.

    In a slot every device receives one row; an owner may send a row to several devices.
    """
    device = jax.lax.axis_index(axes)
    shard_size = rows.shape[0]
    drawn = jax.lax.all_gather(index, axes).T  # [slot, receiver]
    empty = jnp.zeros_like(rows[:1])

    def receive(wanted: tuple[jax.Array, jax.Array]) -> jax.Array:
        owner, offset = wanted  # of the row that each device receives
        return jax.lax.ragged_all_to_all(
            rows,
            empty,
            input_offsets=offset,
            send_sizes=(owner == device).astype(jnp.int32),
            output_offsets=jnp.zeros_like(offset),
            recv_sizes=(jnp.arange(shards) == owner[device]).astype(jnp.int32),
            axis_name=axes,
        )[0]

    return jax.lax.map(receive, (drawn // shard_size, drawn % shard_size))


def _ragged_forward(
    axes: tuple[str, ...], shards: int, rows: jax.Array, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _ragged(axes, shards, rows, index), index


def _ragged_backward(
    axes: tuple[str, ...], shards: int, index: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, Any]:
    gather = lambda rows: _ring(axes, shards, rows, index)
    return (*jax.linear_transpose(gather, cotangent)(cotangent), None)


_ragged.defvjp(_ragged_forward, _ragged_backward)
