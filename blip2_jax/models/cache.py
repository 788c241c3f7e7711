"""Caches of decoding: a prefix that all beams share, and what they generated since.

A step of beam search reorders beams. Copying their caches at every step would cost
more than the attention itself, so nothing is ever moved here: the token that beam
`w` generated at time `t` stays in slot `w * N + t`, and the search says, as a mask
over all `W * N` slots of a row, which ones a beam descends from.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree


@struct.dataclass
class Prefix:
    """What was read before the first new token; one copy for all beams of a row.

    `key` and `value` hold `[L, B, S, H, K]` (the Q-Former: a tuple of `[B, S, H, K]`,
    one a layer), `mask` `[B, S]` which of the S places are not padding,
    `next_position` `[B]` the position of the first new token as the model counts it.
    An encoder-decoder also keeps the encoder's keys and values for its
    cross-attention.
    """

    key: PyTree
    value: PyTree
    mask: Bool[Array, "B S"]
    next_position: Int[Array, " B"]
    cross_key: Array | None = None
    cross_value: Array | None = None
    cross_mask: Bool[Array, "B C"] | None = None


@struct.dataclass
class Generated:
    """Keys and values of the new tokens, `[L, B, W * N, H, K]` (or a tuple a layer)."""

    key: PyTree
    value: PyTree


def init_generated(prefix: Prefix, beams: int, max_new: int) -> Generated:
    """Empty slots for `max_new` (N) tokens of each of `beams` (W) beams a row."""
    slots = beams * max_new

    def empty(cached: Array) -> Array:
        *lead, _, heads, width = cached.shape
        return jnp.zeros((*lead, slots, heads, width), cached.dtype)

    return Generated(
        key=jax.tree.map(empty, prefix.key), value=jax.tree.map(empty, prefix.value)
    )


def write_slots(
    cached: Float[Array, "*L B M H K"],
    new: Float[Array, "*L B W H K"],
    time: Int[Array, ""],
) -> Float[Array, "*L B M H K"]:
    """Put what beam w made at `time` into slot `w * N + time`, where M = W * N."""
    *lead, beams, heads, width = new.shape
    by_beam = cached.reshape(*lead, beams, -1, heads, width)
    written = jax.lax.dynamic_update_slice_in_dim(
        by_beam, new.astype(cached.dtype)[..., None, :, :], time, axis=len(lead) + 1
    )
    return written.reshape(cached.shape)
