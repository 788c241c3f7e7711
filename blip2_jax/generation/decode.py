"""The entry point of decoding, with greedy decoding and sampling."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from blip2_jax.generation.beam_search import beam_search
from blip2_jax.generation.decoder import (
    Decoded,
    Decoder,
    process_scores,
    sequence_lengths,
    visible_slots,
)
from blip2_jax.generation.decoding_config import DecodingConfig


def decode(
    decoder: Decoder,
    logits: Float[Array, "B V"],
    prefix: Any,
    config: DecodingConfig,
    *,
    history: Int[Array, "B T"] | None = None,
    keys: Key[Array, " B"] | None = None,
) -> Decoded:
    """Generate new tokens after a prefix.

    The function is traceable. A row's result depends only on its own logits, prefix,
    history and key.

    Args:
      decoder: model with its parameters bound.
      logits: logits of the first new token, from the model's prefill.
      prefix: the model's KV cache of the prefix; passed on to `decoder` as it is.
      config: static settings.
      history: tokens that the repetition penalty counts from the start, -1 for none.
      keys: one random key per row, required by `config.sample`.

    Returns:
      The results of each row, best first.

    Raises:
      ValueError: `config.sample` is set without keys.
    """
    if history is None:
        history = jnp.full((logits.shape[0], 1), -1, jnp.int32)
    if config.num_beams > 1:
        return beam_search(decoder, logits, prefix, history, config)
    if config.sample and keys is None:
        raise ValueError("sample=True needs keys: one jax random key for each row")
    return greedy_or_sample(decoder, logits, prefix, history, keys, config)


@flax.struct.dataclass
class _State:
    time: Int[Array, ""]  # index of the next token
    sequences: Int[Array, "B W N"]
    scores: Float[Array, "B W"]
    ended: Bool[Array, "B W"]
    generated: Any


def greedy_or_sample(
    decoder: Decoder,
    logits: Float[Array, "B V"],
    prefix: Any,
    history: Int[Array, "B T"],
    keys: Key[Array, " B"] | None,
    config: DecodingConfig,
) -> Decoded:
    """Take the most likely token at each step, or sample one with `config.sample`.

    The W = num_return_sequences samples of a row share its prefix. See `decode` for the
    arguments.
    """
    beams, steps = config.num_return_sequences, config.max_new_tokens
    shape = (logits.shape[0], beams)
    state = _State(
        time=jnp.int32(0),
        sequences=jnp.full((*shape, steps), decoder.pad_id, jnp.int32),
        scores=jnp.zeros(shape, jnp.float32),
        ended=jnp.zeros(shape, bool),
        generated=decoder.init_generated(prefix, beams, steps),
    )
    # Beams never fork here: each descends from itself at all times.
    ancestors = jnp.broadcast_to(jnp.arange(beams)[:, None], (*shape, steps))

    def append_token(state: _State, logits: Float[Array, "B W V"]) -> _State:
        scores = process_scores(
            logits, state.sequences, history, state.time, config, decoder.eos_id
        )
        ids = _next_tokens(scores, keys, state.time, config)
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        gained = jnp.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]
        ids = jnp.where(state.ended, decoder.pad_id, ids)
        return dataclasses.replace(
            state,
            time=state.time + 1,
            sequences=state.sequences.at[:, :, state.time].set(ids),
            scores=state.scores + jnp.where(state.ended, 0.0, gained),
            ended=state.ended | (ids == decoder.eos_id),
        )

    def step(state: _State) -> _State:
        last = state.time - 1
        logits, generated = decoder.decode_step(
            state.sequences[:, :, last],
            last,
            prefix,
            state.generated,
            visible_slots(ancestors, last),
        )
        return append_token(dataclasses.replace(state, generated=generated), logits)

    def is_unfinished(state: _State) -> Bool[Array, ""]:
        return (state.time < steps) & ~state.ended.all()

    first_logits = jnp.broadcast_to(logits[:, None], (*shape, logits.shape[-1]))
    state = jax.lax.while_loop(is_unfinished, step, append_token(state, first_logits))
    lengths = sequence_lengths(state.sequences, decoder.eos_id)
    return Decoded(state.sequences, lengths, state.scores)


def _next_tokens(
    logits: Float[Array, "B W V"],
    keys: Key[Array, " B"] | None,
    time: Int[Array, ""],
    config: DecodingConfig,
) -> Int[Array, "B W"]:
    """Choose the next tokens; samples depend only on the row's own key and logits."""
    if not config.sample:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    assert keys is not None  # checked by `decode`
    logits = keep_top_k(logits / config.temperature, config.top_k)
    logits = keep_top_p(logits, config.top_p)
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, time)
    ids = jax.vmap(jax.random.categorical)(step_keys, logits)
    return ids.astype(jnp.int32)


def keep_top_k(logits: Float[Array, "... V"], top_k: int) -> Float[Array, "... V"]:
    """Set all but the `top_k` highest logits to -inf; keep ties, and all if 0."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    lowest_kept = jax.lax.top_k(logits, top_k)[0][..., -1:]
    return jnp.where(logits < lowest_kept, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "... V"], top_p: float) -> Float[Array, "... V"]:
    """Keep the fewest most likely tokens whose probabilities sum to `top_p`.

    The others are set to -inf; ties are kept. Holtzman et al. 2020 (nucleus sampling),
    section 3.1.
    """
    if top_p >= 1.0:
        return logits
    ascending = jnp.sort(logits, axis=-1)
    cumulative = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
    is_dropped = (cumulative <= 1.0 - top_p).at[..., -1].set(False)
    kept = jnp.where(is_dropped, jnp.inf, ascending)
    lowest_kept = jnp.min(kept, axis=-1, keepdims=True)
    return jnp.where(logits < lowest_kept, -jnp.inf, logits)
