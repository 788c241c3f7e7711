"""Gather of rows of the global batch by index, for sampled hard negatives.

ITM matches every text against a negative image of the *global* batch, so that a device
needs a few rows of other devices' frozen features. Gathering the whole global batch
would need its memory on every device (1.2 GB at 1,680 ViT-g images). There are three
exchanges; N is the number of devices, and a shard is the rows of one device:

| exchange | shards sent | shards held | works on |
|---|---|---|---|
| "ring" | N - 1 | 1 | all backends |
| "grid" | 2 (sqrt(N) - 1) | 2 sqrt(N) | all backends |
| "ragged" | 1 | 1 | TPUs, except v5e slices of more than 16 chips |

"ring" passes shards around a ring, and each device keeps the rows that it needs. "grid"
does so in the columns of a grid of devices, for all devices of a line together, which
then exchange their rows. "ragged" sends the drawn rows alone, by
`jax.lax.ragged_all_to_all`.
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
EXCHANGES = ("ring", "grid", "ragged")


def batch_axes() -> tuple[str, ...]:
    """Return the axes of the current mesh (`jax.set_mesh`) that shard a batch."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return ()
    return tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)


def current_batch_shards() -> int:
    """Return the number of shards of a batch on the current mesh; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in batch_axes())


def gather_global_rows(
    rows: Shaped[Array, "B ..."],
    index: Int[Array | np.ndarray, "B"],
    exchange: str = "ring",
) -> Shaped[Array, "B ..."]:
    """Compute `rows[index]` without gathering all rows on every device.

    Args:
      rows: rows of the global batch, sharded over the batch axes of the current mesh.
      index: for each row of the result, its index in the global batch.
      exchange: one of `EXCHANGES`. The result is the same.

    Returns:
      The gathered rows, sharded like `rows`. Gradients flow back to their source rows.
    """
    axes = batch_axes()
    if not axes:
        return rows[index]
    shards = current_batch_shards()
    gather = {
        "ring": functools.partial(_grid, axes, shards, 1),
        "grid": functools.partial(_grid, axes, shards, _columns(shards)),
        "ragged": functools.partial(_ragged, axes, shards),
    }[exchange]
    spec = PartitionSpec(axes)
    sharded = jax.shard_map(
        gather, in_specs=(spec, spec), out_specs=spec, axis_names=set(axes)
    )
    return sharded(rows, index)


def _columns(shards: int) -> int:
    """Return the largest divisor that is at most the square root."""
    return max(n for n in range(1, math.isqrt(shards) + 1) if shards % n == 0)


def verify_exchange(mesh: Mesh, exchange: str) -> None:
    """Check "ragged" on a mesh by an exchange of numbered rows.

    A collective that delivered wrong rows would not stop a run; its hard negatives
    would just be other images than those that were drawn.

    Raises:
      ValueError: rows arrived that were not asked for.
    """
    if exchange != "ragged":
        return
    with jax.set_mesh(mesh):
        axes = batch_axes()
        size = 3 * current_batch_shards()
        spread = NamedSharding(mesh, PartitionSpec(axes))

        def count_wrong_rows() -> jax.Array:
            index = jax.lax.with_sharding_constraint(jnp.arange(size), spread)
            drawn = index**2 % size  # some rows several times, some never
            rows = gather_global_rows(_numbered_rows(index), drawn, exchange)
            return jnp.sum(rows != _numbered_rows(drawn))

        replicated = NamedSharding(mesh, PartitionSpec())
        wrong = int(jax.jit(count_wrong_rows, out_shardings=replicated)())
    if wrong:
        raise ValueError(
            f"the exchange of hard negatives by ragged_all_to_all delivers wrong rows "
            f"on these {mesh.size} devices ({mesh.devices.flat[0].device_kind}): set "
            "config.objective.exchange=grid, and report it with the versions of jax "
            "and libtpu"
        )


def _numbered_rows(index: Int[Array, " B"]) -> Shaped[Array, "B 16 128"]:
    """Make bf16 rows that hold their number, as its last 8 bits and the rest."""
    parts = jnp.stack([index % 256, index // 256], axis=1).astype(jnp.bfloat16)
    return jnp.tile(parts[:, :, None], (1, 8, 128))


def _grid(
    axes: tuple[str, ...],
    shards: int,
    columns: int,
    rows: jax.Array,
    index: jax.Array,
) -> jax.Array:
    """Gather rows on a grid of devices, numbered line by line.

    Each column is a ring that passes its shards. A device keeps the rows that devices
    of its line need; these then send each other what is theirs.
    """
    device, size = jax.lax.axis_index(axes), rows.shape[0]
    lines = [list(range(first, first + columns)) for first in range(0, shards, columns)]
    wanted = index
    if columns > 1:
        wanted = jax.lax.all_gather(index, axes, axis_index_groups=lines, tiled=True)
    owner, offset = wanted // size, wanted % size
    to_next = [(source, (source + columns) % shards) for source in range(shards)]

    def step(carry, t):
        shard, gathered = carry
        shard = jax.lax.ppermute(shard, axes, to_next)
        in_shard = owner == (device - t * columns) % shards
        in_shard = in_shard.reshape((-1,) + (1,) * (rows.ndim - 1))
        return (shard, jnp.where(in_shard, shard[offset], gathered)), None

    # Rows of other shards are wrong here and are overwritten when their shard arrives.
    initial = (rows, rows[offset])
    (_, gathered), _ = jax.lax.scan(step, initial, jnp.arange(1, len(lines)))
    if columns == 1:
        return gathered
    received = jax.lax.all_to_all(
        gathered.reshape(columns, size, *rows.shape[1:]),
        axes,
        split_axis=0,
        concat_axis=0,
        axis_index_groups=lines,
    )
    return received[index // size % columns, jnp.arange(size)]


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
    gather = lambda rows: _grid(axes, shards, 1, rows, index)
    return (*jax.linear_transpose(gather, cotangent)(cotangent), None)


_ragged.defvjp(_ragged_forward, _ragged_backward)
