"""The attention primitive of every model, and its form for decoding with beams.

Scores and softmax are fp32. A masked score is a large finite negative number, so a
row that may attend to nothing stays finite. On a GPU `fused_attention` may compute it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from blip2_jax.models import fused_attention
from blip2_jax.models.dropout import dropout
from blip2_jax.models.precision import einsum, einsum_fp32

MASKED = -1e9


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
    if fused_attention.is_chosen() and fused_attention.is_possible(
        query, key, restricted=not (mask is None and bias is None),
        dropout=dropout_key is not None and dropout_rate > 0,
    ):  # fmt: skip
        plain = functools.partial(_attention, scale=factor)
        return fused_attention.fused(query, key, value, mask, bias, factor, plain)
    return _attention(
        query, key, value, mask=mask, bias=bias, scale=factor,
        dropout_key=dropout_key, dropout_rate=dropout_rate,
    )  # fmt: skip


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


def decode_attention(
    query: Float[Array, "B W H K"],
    prefix_key: Float[Array, "B S H K"],
    prefix_value: Float[Array, "B S H K"],
    prefix_mask: Bool[Array, "B S"] | None,
    generated_key: Float[Array, "B M H K"],
    generated_value: Float[Array, "B M H K"],
    generated_mask: Bool[Array, "B W M"],
    *,
    prefix_bias: Float[Array, ...] | None = None,
    generated_bias: Float[Array, ...] | None = None,
    scale: float | None = None,
) -> Float[Array, "B W H K"]:
    """One new token per beam attends to a shared prefix and to generated tokens.

    One softmax runs over both. The W beams share the prefix, which is never copied
    per beam; M slots hold the generated tokens of all beams.

    Args:
      query: one token per beam.
      prefix_key: keys of the prompt (image included), shared by the beams.
      prefix_value: values of the prompt.
      prefix_mask: True = a real token; None = all are.
      generated_key: keys of generated tokens; slots not yet written are masked.
      generated_value: values of generated tokens.
      generated_mask: which slots beam w descends from, its own newest included.
      prefix_bias: fp32, broadcastable to [B, H, W, S].
      generated_bias: fp32, broadcastable to [B, H, W, M].
      scale: multiplies the scores; None = K ** -0.5.
    """
    factor = _scale(query, scale)
    visible = None if prefix_mask is None else prefix_mask[:, None, None, :]
    prefix = einsum_fp32("bwhk,bshk->bhws", query, prefix_key) * factor
    generated = einsum_fp32("bwhk,bmhk->bhwm", query, generated_key) * factor
    scores = jnp.concatenate(
        [
            _restrict(prefix, prefix_bias, visible),
            _restrict(generated, generated_bias, generated_mask[:, None]),
        ],
        axis=-1,
    )
    weights = jax.nn.softmax(scores, axis=-1).astype(prefix_value.dtype)
    length = prefix_key.shape[1]
    context = einsum("bhws,bshk->bwhk", weights[..., :length], prefix_value)
    return context + einsum("bhwm,bmhk->bwhk", weights[..., length:], generated_value)


def _scale(query: Float[Array, "... K"], scale: float | None) -> float:
    return query.shape[-1] ** -0.5 if scale is None else scale


def _restrict(scores: Array, bias: Array | None, mask: Array | None) -> Array:
    if bias is not None:
        scores = scores + bias
    return scores if mask is None else jnp.where(mask, scores, MASKED)
