"""The attention primitive of every model, and its form for decoding with beams.

Scores and softmax are fp32. A masked score is a large finite negative number, so a
row that may attend to nothing stays finite. On a GPU `fused_attention` may compute it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from blip2_jax.nn import fused_attention
from blip2_jax.nn.dropout import dropout
from blip2_jax.nn.precision import einsum, einsum_fp32

MASKED = -1e9
KeyValue = tuple[Float[Array, "..."], Float[Array, "..."]]


class DecodeBiases(NamedTuple):
    """Added to the scores of `decode_attention`: fp32, broadcastable; None: nothing."""

    prefix: Float[Array, ...] | None = None  # to [B, H, W, S]
    generated: Float[Array, ...] | None = None  # to [B, H, W, M]
    own: Float[Array, ...] | None = None  # to [B, H, W, 1]


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
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1).

    Args:
      query: queries, in the compute dtype; so are `key` and `value`.
      key: keys.
      value: values.
      mask: True = may attend; broadcastable to [B, H, T, S].
      bias: fp32, added to the scores; broadcastable to [B, H, T, S].
      scale: multiplies the scores; None = K ** -0.5.
      dropout_key: None = no dropout of the probabilities.
      dropout_rate: probability of dropping a probability.

    Returns:
      The context, in the dtype of `value`.
    """
    factor = _scale(query, scale)
    restricted = not (mask is None and bias is None)
    if fused_attention.is_chosen(restricted=restricted) and fused_attention.is_possible(
        query,
        key,
        restricted=restricted,
        dropout=dropout_key is not None and dropout_rate > 0,
    ):
        plain = functools.partial(_attention, scale=factor)
        return fused_attention.fused(query, key, value, mask, bias, factor, plain)
    return _attention(
        query,
        key,
        value,
        mask=mask,
        bias=bias,
        scale=factor,
        dropout_key=dropout_key,
        dropout_rate=dropout_rate,
    )


def _attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    scale: float,
    dropout_key: PRNGKeyArray | None = None,
    dropout_rate: float = 0.0,
) -> Array:
    """`attention` as products and a softmax."""
    scores = einsum_fp32("bthk,bshk->bhts", query, key)
    return _mix(scale, dropout_rate, scores, value, bias, mask, dropout_key)


# Checkpointed: of the T x S arrays the backward pass keeps the scores alone.
@functools.partial(jax.checkpoint, static_argnums=(0, 1))
def _mix(
    scale: float,
    rate: float,
    scores: Array,
    value: Array,
    bias: Array | None,
    mask: Array | None,
    key: PRNGKeyArray | None,
) -> Array:
    """From products of queries and keys to the context."""
    weights = jax.nn.softmax(_restrict(scores * scale, bias, mask), axis=-1)
    weights = dropout(weights.astype(value.dtype), rate, key)
    return einsum("bhts,bshk->bthk", weights, value)


def attention_weights(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    *,
    mask: Bool[Array, ...] | None = None,
    bias: Float[Array, ...] | None = None,
    scale: float | None = None,
) -> Float[Array, "B H T S"]:
    """The fp32 probabilities of `attention`, whose arguments it takes."""
    scores = einsum_fp32("bthk,bshk->bhts", query, key) * _scale(query, scale)
    return jax.nn.softmax(_restrict(scores, bias, mask), axis=-1)


def cached_attention(
    query: Float[Array, "B W H K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S K"],
    mask: Bool[Array, "B S"],
    *,
    scale: float | None = None,
) -> Float[Array, "B W H K"]:
    """Attention to keys and values that are kept by head, as caches are.

    Args:
      query: one token per beam; the beams share the cache.
      key, value: the cache.
      mask: True = a real token.
      scale: multiplies the scores; None = K ** -0.5.
    """
    scores = _cached_scores(query, key) * _scale(query, scale)
    weights = jax.nn.softmax(_restrict(scores, None, mask[:, None, None]), axis=-1)
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
    """One new token per beam attends to a prefix, to generated tokens and to itself.

    One softmax runs over all. The W beams share the prefix, which is never copied per
    beam; M slots hold the generated tokens of all beams. The new tokens need not be
    among them yet, so that a step writes them once, in place.

    Args:
      query: one token per beam.
      new: keys and values of these tokens `[B, W, H, K]`.
      prefix: of the prompt (image included) `[B, H, S, K]`.
      prefix_mask: True = a real token.
      generated: of earlier tokens `[B, H, M, K]`; empty slots are masked.
      generated_mask: which slots beam w descends from, without its new token.
      biases: added to the scores.
      scale: multiplies the scores; None = K ** -0.5.
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
    if weights.shape[2] == 1:
        return einsum("bhws,bhsk->bwhk", weights, value)
    # By head behind a barrier: a product of several rows that is to leave in another
    # order takes a CPU four times as long.
    by_head = einsum("bhws,bhsk->bhwk", weights, value)
    return jax.lax.optimization_barrier(by_head).swapaxes(1, 2)


def _scale(query: Float[Array, "... K"], scale: float | None) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale


def _restrict(scores: Array, bias: Array | None, mask: Array | None) -> Array:
    if bias is not None:
        scores = scores + bias
    return scores if mask is None else jnp.where(mask, scores, MASKED)
