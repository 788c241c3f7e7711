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
from blip2_jax.generation.decoding_plan import (
    DecodingPlan,
    DecodingValues,
    split_config,
)


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
      config: settings, compiled into the program; `decode_plan` reads most of them.
      history: tokens that the repetition penalty counts from the start, -1 for none.
      keys: one random key per row, required by `config.sample`.

    Returns:
      The `num_return_sequences` results of each row, best first.

    Raises:
      ValueError: `config.sample` is set without keys.
    """
    plan, values = split_config(config)
    decoded = decode_plan(
        decoder, logits, prefix, plan, values, history=history, keys=keys
    )
    return select_results(decoded, config)


def decode_plan(
    decoder: Decoder,
    logits: Float[Array, "B V"],
    prefix: Any,
    plan: DecodingPlan,
    values: DecodingValues,
    *,
    history: Int[Array, "B T"] | None = None,
    keys: Key[Array, " B"] | None = None,
) -> Decoded:
    """Generate new tokens with settings of which only the plan is static.

    Args:
      decoder: see `decode`.
      logits: see `decode`.
      prefix: see `decode`.
      plan: static settings.
      values: the other settings.
      history: see `decode`.
      keys: see `decode`.

    Returns:
      The `plan.sequences` results of each row, padded to `plan.slots` tokens.

    Raises:
      ValueError: `plan.sample` is set without keys.
    """
    if history is None:
        history = jnp.full((logits.shape[0], 1), -1, jnp.int32)
    if plan.num_beams > 1:
        return beam_search(decoder, logits, prefix, history, plan, values)
    if plan.sample and keys is None:
        raise ValueError("sample=True needs keys: one jax random key for each row")
    return greedy_or_sample(decoder, logits, prefix, history, keys, plan, values)


def select_results(decoded: Decoded, config: DecodingConfig) -> Decoded:
    """Return the best `num_return_sequences` results without unused token slots."""
    count, tokens = config.num_return_sequences, config.max_new_tokens
    return Decoded(
        decoded.ids[:, :count, :tokens],
        decoded.lengths[:, :count],
        decoded.scores[:, :count],
    )


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
    plan: DecodingPlan,
    values: DecodingValues,
) -> Decoded:
    """Take the most likely token at each step, or sample one with `plan.sample`.

    The W samples of a row share its prefix. See `decode_plan` for the arguments.
    """
    beams, steps = plan.sequences, plan.slots
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
            logits, state.sequences, history, state.time, plan, values, decoder.eos_id
        )
        ids = _next_tokens(scores, keys, state.time, plan, values)
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
        return (state.time < values.max_new_tokens) & ~state.ended.all()

    first_logits = jnp.broadcast_to(logits[:, None], (*shape, logits.shape[-1]))
    state = jax.lax.while_loop(is_unfinished, step, append_token(state, first_logits))
    lengths = sequence_lengths(state.sequences, decoder.eos_id, values.max_new_tokens)
    return Decoded(state.sequences, lengths, state.scores)


def _next_tokens(
    logits: Float[Array, "B W V"],
    keys: Key[Array, " B"] | None,
    time: Int[Array, ""],
    plan: DecodingPlan,
    values: DecodingValues,
) -> Int[Array, "B W"]:
    """Choose the next tokens; samples depend only on the row's own key and logits."""
    if not plan.sample:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    assert keys is not None  # checked by `decode`
    logits = logits / values.temperature
    if plan.candidates and plan.uses_top_p:
        logits = keep_top_k_then_p(
            logits, values.top_k, values.dropped_share, plan.candidates
        )
    elif plan.candidates:
        logits = keep_top_k(logits, values.top_k, plan.candidates)
    elif plan.uses_top_p:
        logits = drop_least_likely(logits, values.dropped_share)
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, time)
    ids = jax.vmap(jax.random.categorical)(step_keys, logits)
    return ids.astype(jnp.int32)


def keep_top_k(
    logits: Float[Array, "... V"],
    top_k: int | Int[Array, ""],
    candidates: int | None = None,
) -> Float[Array, "... V"]:
    """Set all but the `top_k` highest logits to -inf; ties are kept.

    Args:
      logits: the logits.
      top_k: number of tokens; more than there are keeps all.
      candidates: static upper bound of `top_k`; None: `top_k`, which then is static.
    """
    candidates = int(top_k) if candidates is None else candidates
    highest = jax.lax.top_k(logits, min(candidates, logits.shape[-1]))[0]
    last = jnp.minimum(top_k, highest.shape[-1]) - 1
    lowest_kept = jnp.take(highest, last, axis=-1)[..., None]
    return jnp.where(logits < lowest_kept, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "... V"], top_p: float) -> Float[Array, "... V"]:
    """Keep the fewest most likely tokens whose probabilities sum to `top_p`.

    The others are set to -inf; ties are kept. Holtzman et al. 2020 (nucleus sampling),
    section 3.1.
    """
    return drop_least_likely(logits, 1.0 - top_p)


def drop_least_likely(
    logits: Float[Array, "... V"], share: float | Float[Array, ""]
) -> Float[Array, "... V"]:
    """Set the least likely tokens whose probabilities sum to `share` to -inf.

    The most likely token and ties are kept.
    """
    lowest_kept = _lowest_kept(jnp.sort(logits, axis=-1), share)
    return jnp.where(logits < lowest_kept, -jnp.inf, logits)


def keep_top_k_then_p(
    logits: Float[Array, "... V"],
    top_k: int | Int[Array, ""],
    share: float | Float[Array, ""],
    candidates: int,
) -> Float[Array, "... V"]:
    """Apply `keep_top_k` and then `drop_least_likely`.

    Only the candidates are sorted, which for a large vocabulary is most of the time of
    a step.

    Args:
      logits: the logits.
      top_k: see `keep_top_k`.
      share: probability to drop.
      candidates: static upper bound of `top_k`.
    """
    highest = jax.lax.top_k(logits, min(candidates, logits.shape[-1]))[0]
    is_kept = jnp.arange(highest.shape[-1]) < top_k
    ascending = jnp.where(is_kept, highest, -jnp.inf)[..., ::-1]
    return jnp.where(logits < _lowest_kept(ascending, share), -jnp.inf, logits)


def _lowest_kept(
    ascending: Float[Array, "... choices"], share: float | Float[Array, ""]
) -> Float[Array, "... 1"]:
    """Return the lowest logit that is left when `share` is dropped from below."""
    cumulative = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
    is_dropped = (cumulative <= share).at[..., -1].set(False)
    kept = jnp.where(is_dropped, jnp.inf, ascending)
    return jnp.min(kept, axis=-1, keepdims=True)
