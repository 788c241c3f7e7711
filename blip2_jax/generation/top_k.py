"""The largest of very many numbers, in two stages.

Beam search picks ten of a quarter of a million candidates. `jax.lax.top_k` looks at
them one by one; the largest of every block is found several at a time, and the answer
lies in as many blocks as it has elements.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK = 32


def top_k(
    x: Float[Array, "B N"], count: int
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
    """What `jax.lax.top_k` returns: values, largest first, and where they stand.

    Of equal values the first is the larger, here as there: a block that is left out
    has `count` others before it whose largest is larger, or as large and further left.

    Args:
      x: rows.
      count: K, at most N.

    Raises:
      ValueError: `count` exceeds N.
    """
    batch, length = x.shape
    if count > length:
        raise ValueError(f"the {count} largest of {length} numbers were asked for")
    blocks = -(-length // BLOCK)
    if blocks <= count:
        return jax.lax.top_k(x, count)
    rest = blocks * BLOCK - length
    padded = jnp.pad(x, ((0, 0), (0, rest)), constant_values=-jnp.inf)
    padded = padded.reshape(batch, blocks, BLOCK)
    _, chosen = jax.lax.top_k(padded.max(axis=-1), count)
    chosen = jnp.sort(chosen, axis=-1)  # the order of `x`, for values that are equal
    candidates = jnp.take_along_axis(padded, chosen[..., None], axis=1)
    values, places = jax.lax.top_k(candidates.reshape(batch, -1), count)
    block = jnp.take_along_axis(chosen, places // BLOCK, axis=1)
    return values, block * BLOCK + places % BLOCK
