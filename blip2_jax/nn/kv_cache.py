"""Caches of decoding: a prefix that all beams share, and what they generated since.

A step of beam search reorders beams. Copying their caches at every step would cost
more than the attention itself, so nothing is ever moved here: the token that beam
`w` generated at time `t` stays in slot `t * W + w`, and the search says, as a mask
over all M = N * W slots of a row, which ones a beam descends from.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree

from blip2_jax.nn.attention import (
    UNBIASED,
    DecodeBiases,
    KeyValue,
    attention,
    decode_attention,
)
from blip2_jax.nn.layers import MultiHeadAttention


@struct.dataclass
class PrefixKV:
    """What was read before the first new token; one copy for all beams of a row.

    `key` and `value` hold `[L, B, H, S, K]` (the Q-Former: a tuple of `[B, H, S, K]`,
    one a layer), `mask` `[B, S]` which of the S places are not padding,
    `next_position` `[B]` the position of the first new token as the model counts it.
    An encoder-decoder also keeps the encoder's keys and values for its
    cross-attention. `weights`: what `LanguageModel.unstacked_weights` has made of the
    parameters, if that is to be read; keys and values are then lists, one a layer.
    """

    key: PyTree
    value: PyTree
    mask: Bool[Array, "B S"]
    next_position: Int[Array, " B"]
    cross_key: PyTree = None
    cross_value: PyTree = None
    cross_mask: Bool[Array, "B C"] | None = None
    weights: PyTree = None


@struct.dataclass
class GeneratedKV:
    """Keys and values of the new tokens, `[L, B, H, N * W, K]` (or one a layer).

    Those of the newest, `new_key` and `new_value` `[L, B, W, H, K]`, are written into
    their slots by the next step (`commit_last_token`): a step that read the slots and then wrote
    them would copy them all.
    """

    key: PyTree
    value: PyTree
    new_key: PyTree
    new_value: PyTree


def init_generated(prefix: PrefixKV, beams: int, max_new: int) -> GeneratedKV:
    """Empty slots for `max_new` (N) tokens of each of `beams` (W) beams a row."""

    def slots(cached: Array) -> Array:
        *lead, _, width = cached.shape
        return jnp.zeros((*lead, max_new * beams, width), cached.dtype)

    def newest(cached: Array) -> Array:
        *lead, heads, _, width = cached.shape
        return jnp.zeros((*lead, beams, heads, width), cached.dtype)

    caches = (prefix.key, prefix.value)
    return GeneratedKV(*jax.tree.map(slots, caches), *jax.tree.map(newest, caches))


def by_head(key_value: KeyValue) -> KeyValue:
    """Keys and values `[B, S, H, K]` as caches keep them, `[B, H, S, K]`."""
    key, value = key_value
    return key.swapaxes(1, 2), value.swapaxes(1, 2)


def write_slots(
    cached: Float[Array, "*L B H M K"],
    new: Float[Array, "*L B W H K"],
    time: Int[Array, ""],
) -> Float[Array, "*L B H M K"]:
    """Put what beam w made at `time` into slot `time * W + w`."""
    new = new.swapaxes(-3, -2).astype(cached.dtype)
    start = time * new.shape[-2]
    return jax.lax.dynamic_update_slice_in_dim(cached, new, start, cached.ndim - 2)


def slot_times(slots: int, beams: int) -> Int[Array, " M"]:
    """The 0-based index among the new tokens of what each slot is for."""
    return jnp.arange(slots) // beams


def prefill_attention(
    layer: MultiHeadAttention,
    x: Float[Array, "B S D"],
    mask: Bool[Array, "..."],
    *,
    bias: Float[Array, "..."] | None = None,
    scale: float | None = None,
) -> tuple[Float[Array, "B S D"], KeyValue]:
    """Self-attention that also returns the keys and values to keep, by head."""
    key_value = layer.project_key_value(x)
    context = attention(
        layer.project_query(x), *key_value, mask=mask, bias=bias, scale=scale
    )
    return layer.project_output(context), by_head(key_value)


@struct.dataclass
class DecodeMasks:
    """What all layers share while each beam reads one token.

    `prefix_mask` `[B, S]` and `earlier` `[B, W, M]` say what a beam may attend to
    beside its new token; biases are added to the scores.
    """

    prefix_mask: Bool[Array, "B S"]
    earlier: Bool[Array, "B W M"]
    biases: DecodeBiases = UNBIASED


def decode_masks(
    time: Int[Array, ""],
    prefix_mask: Bool[Array, "B S"],
    visible: Bool[Array, "B W M"],
    biases: DecodeBiases = UNBIASED,
) -> DecodeMasks:
    """The step of the new tokens of 0-based index `time`.

    Args:
      visible: which slots a beam descends from, the one of `time` included.
    """
    _, beams, slots = visible.shape
    return DecodeMasks(
        prefix_mask, visible & (slot_times(slots, beams) != time), biases
    )


def step_attention(
    layer: MultiHeadAttention,
    x: Float[Array, "B W D"],
    step: DecodeMasks,
    prefix: KeyValue,
    generated: KeyValue,
    *,
    scale: float | None = None,
) -> tuple[Float[Array, "B W D"], KeyValue]:
    """One token per beam attends to the prefix, its ancestors and itself.

    Returns:
      The layer's output, and the new keys and values `[B, W, H, K]`.
    """
    new = layer.project_key_value(x)
    context = decode_attention(
        layer.project_query(x),
        new,
        prefix,
        step.prefix_mask,
        generated,
        step.earlier,
        biases=step.biases,
        scale=scale,
    )
    return layer.project_output(context), new


def commit_last_token(generated: GeneratedKV, time: Int[Array, ""]) -> GeneratedKV:
    """The newest tokens, of index `time - 1`, put into their slots; at 0, nothing.

    (At 0 zeros go to slots that the first token will fill.)
    """

    def write(cached: PyTree, new: PyTree) -> PyTree:
        return jax.tree.map(
            lambda old, part: write_slots(old, part, time - 1), cached, new
        )

    return dataclasses.replace(
        generated,
        key=write(generated.key, generated.new_key),
        value=write(generated.value, generated.new_value),
    )
