"""Beam search over shared caches, equal id for id to two versions of transformers.

Each step joins every open beam with every token, keeps the best 2W candidates, and
moves those of the best W that end into the pool of finished sequences, which holds
the W best by score. The W best others stay open.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blip2_jax.generation.decoder import (
    Decoded,
    Decoder,
    select_beams,
    sequence_lengths,
    visible_slots,
)
from blip2_jax.generation.decoding_config import DecodingConfig
from blip2_jax.generation.processors import process
from blip2_jax.generation.top_k import top_k

UNUSED_BEAM = -1e9  # score of beams 1 … W-1 before the first token: all start as one


@flax.struct.dataclass
class _State:
    time: Int[Array, ""]  # new tokens chosen so far
    sequences: Int[Array, "B W N"]  # open beams
    scores: Float[Array, "B W"]  # sums of log-probabilities
    ancestors: Int[Array, "B W N"]
    finished: Int[Array, "B W N"]  # the pool, best first
    finished_scores: Float[Array, "B W"]  # -inf: place still free
    done: Bool[Array, " B"]
    generated: Any


@flax.struct.dataclass
class _Candidates:
    """The 2W best continuations of a row, best first."""

    scores: Float[Array, "B 2*W"]
    parents: Int[Array, "B 2*W"]
    ids: Int[Array, "B 2*W"]
    sequences: Int[Array, "B 2*W N"]


def beam_search(
    decoder: Decoder,
    logits: Float[Array, "B V"],
    prefix: Any,
    history: Int[Array, "B T"],
    config: DecodingConfig,
) -> Decoded:
    """The best sequences under beam search; see `decode` for the arguments."""

    def choose(state: _State, logits: Float[Array, "B W V"]) -> _State:
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        log_probs = process(
            log_probs, state.sequences, history, state.time, config, decoder.eos_id
        )
        return _step(state, _best_candidates(state, log_probs), decoder.eos_id, config)

    def advance(state: _State) -> _State:
        last = state.time - 1
        logits, generated = decoder.decode_step(
            state.sequences[:, :, last],
            last,
            prefix,
            state.generated,
            visible_slots(state.ancestors, last),
        )
        return choose(dataclasses.replace(state, generated=generated), logits)

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.time < config.max_new_tokens) & ~state.done.all()

    state = _init(decoder, prefix, logits.shape[0], config)
    first = jnp.broadcast_to(logits[:, None], (*state.scores.shape, logits.shape[-1]))
    state = jax.lax.while_loop(unfinished, advance, choose(state, first))
    if config.convention == "original":
        state = _add_open_beams(state, config)
    ids = state.finished[:, : config.num_return_sequences]
    scores = state.finished_scores[:, : config.num_return_sequences]
    return Decoded(ids, sequence_lengths(ids, decoder.eos_id), scores)


def _init(decoder: Decoder, prefix: Any, batch: int, config: DecodingConfig) -> _State:
    beams, steps = config.num_beams, config.max_new_tokens
    sequences = jnp.full((batch, beams, steps), decoder.pad_id, jnp.int32)
    scores = jnp.where(jnp.arange(beams) == 0, 0.0, UNUSED_BEAM)
    return _State(
        time=jnp.int32(0),
        sequences=sequences,
        scores=jnp.broadcast_to(scores, (batch, beams)),
        ancestors=jnp.zeros((batch, beams, steps), jnp.int32),
        finished=sequences,
        finished_scores=jnp.full((batch, beams), -jnp.inf),
        done=jnp.zeros((batch,), bool),
        generated=decoder.init_generated(prefix, beams, steps),
    )


def _best_candidates(state: _State, log_probs: Float[Array, "B W V"]) -> _Candidates:
    batch, beams, vocab = log_probs.shape
    totals = (log_probs + state.scores[:, :, None]).reshape(batch, beams * vocab)
    scores, places = top_k(totals, 2 * beams)
    parents, ids = places // vocab, places % vocab
    sequences = select_beams(state.sequences, parents)
    sequences = sequences.at[:, :, state.time].set(ids)
    return _Candidates(scores, parents, ids, sequences)


def _step(
    state: _State, candidates: _Candidates, eos_id: int, config: DecodingConfig
) -> _State:
    """Finish the candidates that end, keep the best others open, test for done."""
    beams = config.num_beams
    length = (state.time + 1).astype(jnp.float32)  # of every candidate
    ends = candidates.ids == eos_id
    if config.convention == "transformers5":
        ends |= length == config.max_new_tokens
    among_best = jnp.arange(2 * beams) < beams
    rated = candidates.scores / length**config.length_penalty
    rated = jnp.where(ends & among_best & ~state.done[:, None], rated, -jnp.inf)
    finished, finished_scores = _merge(state, candidates.sequences, rated)

    open_scores = jnp.where(ends, -jnp.inf, candidates.scores)
    scores, kept = jax.lax.top_k(open_scores, beams)
    parents = select_beams(candidates.parents, kept)
    ancestors = select_beams(state.ancestors, parents)
    ancestors = ancestors.at[:, :, state.time].set(jnp.arange(beams))

    best_open = scores[:, 0]
    if config.convention == "original":
        best_open = candidates.scores[:, 0]
    worst = finished_scores[:, -1]
    done = worst >= best_open / _attainable_length(length, config)
    if config.early_stopping is True:
        done = jnp.ones_like(done)
    return dataclasses.replace(
        state,
        time=state.time + 1,
        sequences=select_beams(candidates.sequences, kept),
        scores=scores,
        ancestors=ancestors,
        finished=finished,
        finished_scores=finished_scores,
        done=state.done | (done & (worst > -jnp.inf)),
    )


def _attainable_length(
    length: Float[Array, ""], config: DecodingConfig
) -> Float[Array, ""] | float:
    """The length (to the power of the penalty) at which open beams are rated."""
    if config.early_stopping == "never" and config.length_penalty > 0:
        longest = config.max_new_tokens + config.start_tokens
        return float(longest) ** config.length_penalty
    return (length + config.start_tokens) ** config.length_penalty


def _merge(
    state: _State, sequences: Int[Array, "B X N"], rated: Float[Array, "B X"]
) -> tuple[Int[Array, "B W N"], Float[Array, "B W"]]:
    """The W best of the pool and of `sequences`; the pool's first where equal."""
    scores = jnp.concatenate([state.finished_scores, rated], axis=1)
    scores, kept = jax.lax.top_k(scores, state.finished_scores.shape[1])
    everything = jnp.concatenate([state.finished, sequences], axis=1)
    return select_beams(everything, kept), scores


def _add_open_beams(state: _State, config: DecodingConfig) -> _State:
    """Beams still open after the last token count as finished, start token added."""
    length = float(config.max_new_tokens + config.start_tokens)
    rated = state.scores / length**config.length_penalty
    rated = jnp.where(state.done[:, None], -jnp.inf, rated)
    finished, scores = _merge(state, state.sequences, rated)
    return dataclasses.replace(state, finished=finished, finished_scores=scores)
