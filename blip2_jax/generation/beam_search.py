"""Beam search over shared KV caches, token for token equal to transformers'.

Each step extends every open beam by every token and keeps the best 2W candidates. Of
the best W candidates, those that end join the pool of finished sequences, which holds
the best W by score. The best W candidates that do not end are the next open beams.
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
    process_scores,
    sequence_lengths,
    visible_slots,
)
from blip2_jax.generation.decoding_plan import DecodingPlan, DecodingValues

# Score of beams 1 … W - 1 before the first token, when all beams are the same sequence.
UNUSED_BEAM = -1e9


@flax.struct.dataclass
class _State:
    """Loop state.

    Attributes:
      time: number of new tokens per open beam.
      sequences: tokens of the open beams.
      scores: sums of log-probabilities of the open beams.
      ancestors: see `visible_slots`.
      finished: the pool, best first.
      finished_scores: scores of the pool; -inf where a place is free.
      done: rows whose pool cannot improve.
      generated: KV cache of the new tokens.
    """

    time: Int[Array, ""]
    sequences: Int[Array, "B W N"]
    scores: Float[Array, "B W"]
    ancestors: Int[Array, "B W N"]
    finished: Int[Array, "B W N"]
    finished_scores: Float[Array, "B W"]
    done: Bool[Array, " B"]
    generated: Any


@flax.struct.dataclass
class _Candidates:
    """The best 2W one-token extensions of a row's beams, best first."""

    scores: Float[Array, "B 2*W"]
    parents: Int[Array, "B 2*W"]
    ids: Int[Array, "B 2*W"]
    sequences: Int[Array, "B 2*W N"]


def beam_search(
    decoder: Decoder,
    logits: Float[Array, "B V"],
    prefix: Any,
    history: Int[Array, "B T"],
    plan: DecodingPlan,
    values: DecodingValues,
) -> Decoded:
    """Return the best W sequences found by beam search.

    This is our own implementation because results must equal transformers' token for
    token under both length conventions while all beams share one prefix cache. See
    `decode_plan` for the arguments.
    """

    def extend(state: _State, logits: Float[Array, "B W V"]) -> _State:
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        log_probs = process_scores(
            log_probs,
            state.sequences,
            history,
            state.time,
            plan,
            values,
            decoder.eos_id,
        )
        candidates = _best_candidates(state, log_probs)
        return _update(state, candidates, decoder.eos_id, plan, values)

    def step(state: _State) -> _State:
        last = state.time - 1
        logits, generated = decoder.decode_step(
            state.sequences[:, :, last],
            last,
            prefix,
            state.generated,
            visible_slots(state.ancestors, last),
        )
        return extend(dataclasses.replace(state, generated=generated), logits)

    def is_unfinished(state: _State) -> Bool[Array, ""]:
        return (state.time < values.max_new_tokens) & ~state.done.all()

    state = _init(decoder, prefix, logits.shape[0], plan)
    shape = (*state.scores.shape, logits.shape[-1])
    first_logits = jnp.broadcast_to(logits[:, None], shape)
    state = jax.lax.while_loop(is_unfinished, step, extend(state, first_logits))
    if plan.convention == "original":
        state = _finish_open_beams(state, values)
    ids = state.finished
    lengths = sequence_lengths(ids, decoder.eos_id, values.max_new_tokens)
    return Decoded(ids, lengths, state.finished_scores)


def _init(decoder: Decoder, prefix: Any, batch: int, plan: DecodingPlan) -> _State:
    beams, steps = plan.num_beams, plan.slots
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
    scores, indices = jax.lax.top_k(totals, 2 * beams)
    parents, ids = indices // vocab, indices % vocab
    sequences = _select_beams(state.sequences, parents)
    sequences = sequences.at[:, :, state.time].set(ids)
    return _Candidates(scores, parents, ids, sequences)


def _update(
    state: _State,
    candidates: _Candidates,
    eos_id: int,
    plan: DecodingPlan,
    values: DecodingValues,
) -> _State:
    """Move ended candidates to the pool, keep others open and update `done`."""
    beams = plan.num_beams
    length = state.time + 1  # the same for all candidates
    ends = candidates.ids == eos_id
    if plan.convention == "transformers5":
        ends |= length == values.max_new_tokens
    is_among_best = jnp.arange(2 * beams) < beams
    final_scores = candidates.scores / jnp.take(values.divisors, length)
    joins_pool = ends & is_among_best & ~state.done[:, None]
    final_scores = jnp.where(joins_pool, final_scores, -jnp.inf)
    finished, finished_scores = _merge(state, candidates.sequences, final_scores)

    open_scores = jnp.where(ends, -jnp.inf, candidates.scores)
    scores, selected = jax.lax.top_k(open_scores, beams)
    parents = _select_beams(candidates.parents, selected)
    ancestors = _select_beams(state.ancestors, parents)
    ancestors = ancestors.at[:, :, state.time].set(jnp.arange(beams))

    best_open = scores[:, 0]
    if plan.convention == "original":
        best_open = candidates.scores[:, 0]
    worst_finished = finished_scores[:, -1]
    done = worst_finished >= best_open / jnp.take(values.stop_divisors, length)
    done |= values.stops_early
    pool_is_full = worst_finished > -jnp.inf
    return dataclasses.replace(
        state,
        time=state.time + 1,
        sequences=_select_beams(candidates.sequences, selected),
        scores=scores,
        ancestors=ancestors,
        finished=finished,
        finished_scores=finished_scores,
        done=state.done | (done & pool_is_full),
    )


def _merge(
    state: _State,
    sequences: Int[Array, "B candidates N"],
    scores: Float[Array, "B candidates"],
) -> tuple[Int[Array, "B W N"], Float[Array, "B W"]]:
    """Select the best W of the pool and `sequences`; the pool wins ties."""
    all_scores = jnp.concatenate([state.finished_scores, scores], axis=1)
    best_scores, selected = jax.lax.top_k(all_scores, state.finished_scores.shape[1])
    all_sequences = jnp.concatenate([state.finished, sequences], axis=1)
    return _select_beams(all_sequences, selected), best_scores


def _finish_open_beams(state: _State, values: DecodingValues) -> _State:
    """Add the beams that are open after the last token to the pool.

    The start token counts in the convention that does so.
    """
    scores = state.scores / jnp.take(values.divisors, values.max_new_tokens + 1)
    scores = jnp.where(state.done[:, None], -jnp.inf, scores)
    finished, finished_scores = _merge(state, state.sequences, scores)
    return dataclasses.replace(
        state, finished=finished, finished_scores=finished_scores
    )


def _select_beams(values: jax.Array, indices: Int[Array, "B W"]) -> jax.Array:
    """Gather along the beam axis: [B,beams,...] -> [B,W,...]."""
    shape = indices.shape + (1,) * (values.ndim - 2)
    return jnp.take_along_axis(values, indices.reshape(shape), axis=1)
