"""What changes scores before a token is chosen: pure functions of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from blip2_jax.generation.decoding_config import DecodingConfig


def penalize_repetition(
    scores: Float[Array, "B W V"], ids: Int[Array, "B W T"], penalty: float
) -> Float[Array, "B W V"]:
    """Divide the scores of tokens that `ids` holds; multiply negative ones.

    Keskar et al. 2019 (CTRL), section 4.1. Entries of `ids` below 0 or at or above
    V stand for no token.
    """
    batch, beams, vocab = scores.shape
    rows, columns = jnp.arange(batch)[:, None, None], jnp.arange(beams)[:, None]
    there = jnp.zeros(scores.shape, bool)
    there = there.at[rows, columns, jnp.where(ids < 0, vocab, ids)].set(
        True, mode="drop"
    )
    penalized = jnp.where(scores < 0, scores * penalty, scores / penalty)
    return jnp.where(there, penalized, scores)


def process(
    scores: Float[Array, "B W V"],
    sequences: Int[Array, "B W N"],
    history: Int[Array, "B T"],
    time: Int[Array, ""],
    config: DecodingConfig,
    eos_id: int,
) -> Float[Array, "B W V"]:
    """Repetition penalty and minimum length for the token of index `time`.

    Args:
      scores: logits (greedy, sampling) or log-probabilities (beam search).
      sequences: the new tokens so far: those of index below `time` count.
      history: tokens that count for the repetition penalty from the start; -1 for
        none.
      time: how many new tokens there are.
    """
    if config.repetition_penalty != 1.0:
        chosen = jnp.where(jnp.arange(sequences.shape[-1]) < time, sequences, -1)
        before = jnp.broadcast_to(
            history[:, None], (*sequences.shape[:2], history.shape[-1])
        )
        ids = jnp.concatenate([before, chosen], axis=-1)
        scores = penalize_repetition(scores, ids, config.repetition_penalty)
    if config.min_new_tokens > 0:
        too_early = time < config.min_new_tokens
        is_eos = jnp.arange(scores.shape[-1]) == eos_id
        scores = jnp.where(too_early & is_eos, -jnp.inf, scores)
    return scores


def keep_top_k(logits: Float[Array, "*X V"], top_k: int) -> Float[Array, "*X V"]:
    """All but the `top_k` highest become -inf; 0 keeps all; ties are kept."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    smallest = jax.lax.top_k(logits, top_k)[0][..., -1:]
    return jnp.where(logits < smallest, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "*X V"], top_p: float) -> Float[Array, "*X V"]:
    """Nucleus: the fewest most likely tokens that hold `top_p`; ties are kept.

    Holtzman et al. 2020, section 3.1.
    """
    if top_p >= 1.0:
        return logits
    ascending = jnp.sort(logits, axis=-1)
    mass = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
    dropped = (mass <= 1.0 - top_p).at[..., -1].set(False)
    smallest = jnp.min(jnp.where(dropped, jnp.inf, ascending), -1, keepdims=True)
    return jnp.where(logits < smallest, -jnp.inf, logits)
