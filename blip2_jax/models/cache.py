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

from blip2_jax.models.attention import attention, decode_attention
from blip2_jax.models.layers import MultiHeadAttention

KeyValue = tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]]


@struct.dataclass
class Prefix:
    """What was read before the first new token; one copy for all beams of a row.

    `key` and `value` hold `[L, B, S, H, K]` (the Q-Former: a tuple of `[B, S, H, K]`,
    one a layer), `mask` `[B, S]` which of the S places are not padding,
    `next_position` `[B]` the position of the first new token as the model counts it.
    An encoder-decoder also keeps the encoder's keys and values for its
    cross-attention. `layers`: parameters of the blocks where they were taken apart
    (`LanguageModel.take_apart`); keys and values are then lists, one a layer.
    """

    key: PyTree
    value: PyTree
    mask: Bool[Array, "B S"]
    next_position: Int[Array, " B"]
    cross_key: PyTree = None
    cross_value: PyTree = None
    cross_mask: Bool[Array, "B C"] | None = None
    layers: PyTree = None


@struct.dataclass
class Generated:
    """Keys and values of the new tokens, `[L, B, W * N, H, K]` (or one a layer)."""

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


def prefill_attention(
    layer: MultiHeadAttention,
    x: Float[Array, "B S D"],
    mask: Bool[Array, "..."],
    *,
    bias: Float[Array, "..."] | None = None,
    scale: float | None = None,
) -> tuple[Float[Array, "B S D"], KeyValue]:
    """Self-attention that also returns the keys and values to keep."""
    key, value = layer.project_key_value(x)
    context = attention(
        layer.project_query(x), key, value, mask=mask, bias=bias, scale=scale
    )
    return layer.project_output(context), (key, value)


@struct.dataclass
class Step:
    """What all layers share while each beam reads one token.

    `time` is the 0-based index of the token among the new ones; `visible` `[B, W, M]`
    says which slots a beam descends from, the one written now included; biases are
    added to the scores (fp32, broadcastable to `[B, H, W, S]` and `[B, H, W, M]`).
    """

    time: Int[Array, ""]
    prefix_mask: Bool[Array, "B S"]
    visible: Bool[Array, "B W M"]
    prefix_bias: Array | None = None
    generated_bias: Array | None = None


def step_attention(
    layer: MultiHeadAttention,
    x: Float[Array, "B W D"],
    step: Step,
    prefix: KeyValue,
    generated: KeyValue,
    *,
    scale: float | None = None,
) -> tuple[Float[Array, "B W D"], KeyValue]:
    """One token per beam attends to the prefix, its ancestors and itself.

    Returns:
      The layer's output, and the new keys and values `[B, W, H, K]`, which
      `write_slots` puts into the cache once for all layers.
    """
    new_key, new_value = layer.project_key_value(x)
    context = decode_attention(
        layer.project_query(x),
        *prefix,
        step.prefix_mask,
        write_slots(generated[0], new_key, step.time),
        write_slots(generated[1], new_value, step.time),
        step.visible,
        prefix_bias=step.prefix_bias,
        generated_bias=step.generated_bias,
        scale=scale,
    )
    return layer.project_output(context), (new_key, new_value)


def extend(
    generated: Generated, new: tuple[PyTree, PyTree], time: Int[Array, ""]
) -> Generated:
    """The cache with new keys and values `[L, B, W, H, K]` (or one a layer) written."""

    def write(cached: PyTree, new: PyTree) -> PyTree:
        return jax.tree.map(lambda old, part: write_slots(old, part, time), cached, new)

    return Generated(write(generated.key, new[0]), write(generated.value, new[1]))
