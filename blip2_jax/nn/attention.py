"""Scaled dot-product attention: over whole sequences, over caches, and for decoding.

Scores and softmax are fp32. A masked score is a large finite negative number, so that
a position that may attend to nothing stays finite. `fused_attention` decides which
calls run a fused kernel on a GPU or TPU.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from blip2_jax.nn import fused_attention
from blip2_jax.nn.cudnn_attention import cudnn_attention
from blip2_jax.nn.dropout import dropout
from blip2_jax.nn.precision import einsum, einsum_fp32
from blip2_jax.nn.tpu_attention import tpu_attention

MASKED = -1e9
KeyValue = tuple[Float[Array, "..."], Float[Array, "..."]]


class DecodeBiases(NamedTuple):
    """fp32 biases added to the scores of `decode_attention`; None = no bias."""

    prefix: Float[Array, ...] | None = None  # broadcastable to [B, H, W, S]
    generated: Float[Array, ...] | None = None  # broadcastable to [B, H, W, M]
    own: Float[Array, ...] | None = None  # broadcastable to [B, H, W, 1]


UNBIASED = DecodeBiases()


def attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    *,
    mask: Bool[Array, ...] | None = None,
    bias: Float[Array, ...] | None = None,
    scale: float | None = None,
    dropout_key: PRNGKeyArray | None = None,
    dropout_rate: float = 0.0,
) -> Float[Array, "B T H K"]:
    """Compute scaled dot-product attention (Vaswani et al. 2017, equation 1).

    Args:
      query: queries in the compute dtype, like `key` and `value`.
      key: keys.
      value: values.
      mask: True = may attend; broadcastable to [B, H, T, S].
      bias: fp32, added to the scores; broadcastable to [B, H, T, S].
      scale: factor of the scores; None = K ** -0.5.
      dropout_key: None = no dropout of the attention weights.
      dropout_rate: probability of dropping a weight.

    Returns:
      The context, in the dtype of `value`.
    """
    factor = _scale(query, scale)
    kernel = fused_attention.kernel_of(
        query,
        key,
        restricted=not (mask is None and bias is None),
        dropout=dropout_key is not None and dropout_rate > 0,
    )
    if kernel == "cudnn":
        return cudnn_attention(query, key, value, mask, bias, factor)
    if kernel == "pallas":
        return tpu_attention(query, key, value, factor)
    scores = einsum_fp32("bthk,bshk->bhts", query, key)
    return _mix_by_scores(factor, dropout_rate, scores, value, bias, mask, dropout_key)


# Checkpointed so that the backward pass keeps only the scores of the [T, S] arrays.
@functools.partial(jax.checkpoint, static_argnums=(0, 1))
def _mix_by_scores(
    scale: float,
    dropout_rate: float,
    scores: Array,
    value: Array,
    bias: Array | None,
    mask: Array | None,
    dropout_key: PRNGKeyArray | None,
) -> Array:
    """Turn scores into weights and return the weighted sum of the values."""
    weights = jax.nn.softmax(_restrict(scores * scale, bias, mask), axis=-1)
    weights = dropout(weights.astype(value.dtype), dropout_rate, dropout_key)
    return mix_values(weights, value)


def mix_values(
    weights: Float[Array, "B H T S"], value: Float[Array, "B S H K"]
) -> Float[Array, "B T H K"]:
    """Return the sum of the values by weight, in the dtype of `value`."""
    return einsum("bhts,bshk->bthk", weights.astype(value.dtype), value)


def attention_weights(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    *,
    mask: Bool[Array, ...] | None = None,
    bias: Float[Array, ...] | None = None,
    scale: float | None = None,
) -> Float[Array, "B H T S"]:
    """Compute the fp32 weights of `attention`, which documents the arguments."""
    scores = einsum_fp32("bthk,bshk->bhts", query, key) * _scale(query, scale)
    return jax.nn.softmax(_restrict(scores, bias, mask), axis=-1)


def cached_attention(
    query: Float[Array, "B W H K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S K"],
    mask: Bool[Array, "B S"] | None = None,
    *,
    scale: float | None = None,
) -> Float[Array, "B W H K"]:
    """Attend to cached keys and values, stored head by head.

    Args:
      query: one token per beam; the beams of a row share the cache.
      key: cached keys.
      value: cached values.
      mask: True = a real token; None = all are.
      scale: factor of the scores; None = K ** -0.5.
    """
    scores = _cached_scores(query, key) * _scale(query, scale)
    visible = None if mask is None else mask[:, None, None]
    weights = jax.nn.softmax(_restrict(scores, None, visible), axis=-1)
    return _cached_context(weights.astype(value.dtype), value)


def decode_attention(
    query: Float[Array, "B W H K"],
    new: KeyValue,
    prefix: KeyValue,
    prefix_mask: Bool[Array, "B S"],
    generated: KeyValue,
    generated_mask: Bool[Array, "B W M"],
    *,
    biases: DecodeBiases = UNBIASED,
    scale: float | None = None,
) -> Float[Array, "B W H K"]:
    """Attend from one new token per beam to the prefix, its ancestors and itself.

    One softmax covers all three. The W beams of a row share the prefix, which is never
    copied. The new tokens are passed separately from the generated slots, so that each
    step writes the slots once, in place.

    Args:
      query: one token per beam.
      new: keys and values of these tokens [B, W, H, K].
      prefix: keys and values of the prompt, image included, [B, H, S, K].
      prefix_mask: True = a real token.
      generated: keys and values of earlier new tokens [B, H, M, K].
      generated_mask: True = beam w descends from this slot; excludes its new token.
      biases: added to the scores.
      scale: factor of the scores; None = K ** -0.5.
    """
    factor = _scale(query, scale)
    own = query.astype(jnp.float32) * new[0].astype(jnp.float32)
    own = own.sum(axis=-1).swapaxes(1, 2)[..., None]
    parts = (
        (_cached_scores(query, prefix[0]), prefix_mask[:, None, None]),
        (_cached_scores(query, generated[0]), generated_mask[:, None]),
        (own, None),
    )
    scores = [
        _restrict(part * factor, bias, mask)
        for (part, mask), bias in zip(parts, biases, strict=True)
    ]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    weights = weights.astype(new[1].dtype)
    length = prefix[0].shape[2]
    context = _cached_context(weights[..., :length], prefix[1])
    context += _cached_context(weights[..., length:-1], generated[1])
    return context + weights[..., -1:].swapaxes(1, 2) * new[1]


def _cached_scores(query: Array, key: Array) -> Float[Array, "B H W S"]:
    return einsum_fp32("bwhk,bhsk->bhws", query, key)


def _cached_context(weights: Array, value: Array) -> Float[Array, "B W H K"]:
    by_head = einsum("bhws,bhsk->bhwk", weights, value)
    # Without the barrier XLA's CPU backend writes the transposed result from within the
    # matmul, which takes four times as long with several beams.
    return jax.lax.optimization_barrier(by_head).swapaxes(1, 2)


def _scale(query: Float[Array, "... K"], scale: float | None) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale


def _restrict(scores: Array, bias: Array | None, mask: Array | None) -> Array:
    """Add the bias and replace masked scores by `MASKED`."""
    if bias is not None:
        scores = scores + bias
    return scores if mask is None else jnp.where(mask, scores, MASKED)
