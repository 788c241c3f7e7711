"""KV caches of decoding: a prefix shared by all beams, and the generated tokens.

Beam search reorders beams at every step, and copying their caches each time would cost
more than the attention itself. So nothing is ever moved: the token that beam w
generates at time t stays in slot t * W + w, and a mask over the M = N * W slots of a
row says which slots a beam descends from.
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
    """Keys and values of the prompt, one copy for all beams of a row.

    With unstacked `weights` (decoding on a CPU) the keys and values are lists with one
    array per layer. The Q-Former has tuples of one array per layer.

    Attributes:
      key: [L, B, H, S, K].
      value: [L, B, H, S, K].
      mask: True = a real token.
      next_position: position of the first new token, as the model counts positions.
      cross_key: encoder keys for cross-attention (encoder-decoder only).
      cross_value: encoder values.
      cross_mask: True = a real encoder token.
      weights: from `LanguageModel.unstacked_weights`, read instead of the parameters.
    """

    key: PyTree
    value: PyTree
    mask: Bool[Array, "B S"]
    next_position: Int[Array, " B"]
    cross_key: PyTree = None
    cross_value: PyTree = None
    cross_mask: Bool[Array, "B encoded"] | None = None
    weights: PyTree = None


@struct.dataclass
class GeneratedKV:
    """Keys and values of the new tokens.

    Those of the newest token are kept apart; the next step writes them into their slots
    (`commit_last_token`). A step that read the slots before writing them would copy
    them all.

    Attributes:
      key: [L, B, H, M, K], or one array per layer, as in `PrefixKV`.
      value: as `key`.
      new_key: [L, B, W, H, K], keys of the newest token of each beam.
      new_value: as `new_key`.
    """

    key: PyTree
    value: PyTree
    new_key: PyTree
    new_value: PyTree


def init_generated(prefix: PrefixKV, beams: int, max_new: int) -> GeneratedKV:
    """Create empty slots for `max_new` (N) tokens of `beams` (W) beams per row."""

    def slots(cached: Array) -> Array:
        *lead, _, width = cached.shape
        return jnp.zeros((*lead, max_new * beams, width), cached.dtype)

    def newest(cached: Array) -> Array:
        *lead, heads, _, width = cached.shape
        return jnp.zeros((*lead, beams, heads, width), cached.dtype)

    caches = (prefix.key, prefix.value)
    return GeneratedKV(*jax.tree.map(slots, caches), *jax.tree.map(newest, caches))


def by_head(key_value: KeyValue) -> KeyValue:
    """Transpose keys and values [B, S, H, K] to the caches' layout [B, H, S, K]."""
    key, value = key_value
    return key.swapaxes(1, 2), value.swapaxes(1, 2)


def write_slots(
    cached: Float[Array, "*L B H M K"],
    new: Float[Array, "*L B W H K"],
    time: Int[Array, ""],
) -> Float[Array, "*L B H M K"]:
    """Write what beam w made at `time` into slot time * W + w."""
    new = new.swapaxes(-3, -2).astype(cached.dtype)
    start = time * new.shape[-2]
    return jax.lax.dynamic_update_slice_in_dim(cached, new, start, cached.ndim - 2)


def slot_times(slots: int, beams: int) -> Int[Array, " M"]:
    """Return the time (0-based index of the new token) that each slot is for."""
    return jnp.arange(slots) // beams


def prefill_attention(
    layer: MultiHeadAttention,
    x: Float[Array, "B S D"],
    mask: Bool[Array, "..."],
    *,
    bias: Float[Array, "..."] | None = None,
    scale: float | None = None,
) -> tuple[Float[Array, "B S D"], KeyValue]:
    """Compute self-attention and also return its keys and values, by head."""
    key_value = layer.project_key_value(x)
    context = attention(
        layer.project_query(x), *key_value, mask=mask, bias=bias, scale=scale
    )
    return layer.project_output(context), by_head(key_value)


@struct.dataclass
class DecodeMasks:
    """Masks and biases of one decoding step, shared by all layers.

    Attributes:
      prefix: True = a real token of the prefix.
      earlier: True = an earlier new token that the beam descends from.
      biases: added to the scores.
    """

    prefix: Bool[Array, "B S"]
    earlier: Bool[Array, "B W M"]
    biases: DecodeBiases = UNBIASED


def decode_masks(
    time: Int[Array, ""],
    prefix_mask: Bool[Array, "B S"],
    visible: Bool[Array, "B W M"],
    biases: DecodeBiases = UNBIASED,
) -> DecodeMasks:
    """Build the masks of the step that reads the new tokens of index `time`.

    Args:
      time: 0-based index of the new tokens.
      prefix_mask: True = a real token of the prefix.
      visible: True = a slot that the beam descends from, that of `time` included.
      biases: added to the scores.
    """
    _, beams, slots = visible.shape
    earlier = visible & (slot_times(slots, beams) != time)
    return DecodeMasks(prefix_mask, earlier, biases)


def step_attention(
    layer: MultiHeadAttention,
    x: Float[Array, "B W D"],
    masks: DecodeMasks,
    prefix: KeyValue,
    generated: KeyValue,
    *,
    scale: float | None = None,
) -> tuple[Float[Array, "B W D"], KeyValue]:
    """Attend from one token per beam to the prefix, its ancestors and itself.

    Returns:
      The layer's output, and the new keys and values [B, W, H, K].
    """
    new = layer.project_key_value(x)
    context = decode_attention(
        layer.project_query(x),
        new,
        prefix,
        masks.prefix,
        generated,
        masks.earlier,
        biases=masks.biases,
        scale=scale,
    )
    return layer.project_output(context), new


def commit_last_token(generated: GeneratedKV, time: Int[Array, ""]) -> GeneratedKV:
    """Write the newest tokens, of index `time` - 1, into their slots.

    At time 0 there are none: the zeros written go to slots that are still empty.
    """

    def write(cached: PyTree, new: PyTree) -> PyTree:
        return jax.tree.map(
            lambda slots, newest: write_slots(slots, newest, time - 1), cached, new
        )

    return dataclasses.replace(
        generated,
        key=write(generated.key, generated.new_key),
        value=write(generated.value, generated.new_value),
    )
