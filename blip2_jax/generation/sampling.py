"""Greedy decoding and sampling: every beam goes its own way."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from blip2_jax.generation.decoder import (
    Decoded,
    Decoder,
    sequence_lengths,
    visible_slots,
)
from blip2_jax.generation.decoding_config import DecodingConfig
from blip2_jax.generation.processors import keep_top_k, keep_top_p, process


@flax.struct.dataclass
class _State:
    time: Int[Array, ""]  # new tokens chosen so far
    sequences: Int[Array, "B W N"]
    scores: Float[Array, "B W"]
    ended: Bool[Array, "B W"]
    generated: Any


def sample(
    decoder: Decoder,
    logits: Float[Array, "B V"],
    prefix: Any,
    history: Int[Array, "B T"],
    keys: Key[Array, " B"] | None,
    config: DecodingConfig,
) -> Decoded:
    """The most likely token each time, or a draw with `config.sample`.

    W = num_return_sequences draws a row share the prefix; see `decode` for the
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
    ancestors = jnp.broadcast_to(jnp.arange(beams)[:, None], (*shape, steps))

    def choose(state: _State, logits: Float[Array, "B W V"]) -> _State:
        scores = process(
            logits, state.sequences, history, state.time, config, decoder.eos_id
        )
        ids = _draw(scores, keys, state.time, config)
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

    def advance(state: _State) -> _State:
        last = state.time - 1
        logits, generated = decoder.decode_step(
            state.sequences[:, :, last],
            last,
            prefix,
            state.generated,
            visible_slots(ancestors, last),
        )
        return choose(dataclasses.replace(state, generated=generated), logits)

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.time < steps) & ~state.ended.all()

    first = jnp.broadcast_to(logits[:, None], (*shape, logits.shape[-1]))
    state = jax.lax.while_loop(unfinished, advance, choose(state, first))
    lengths = sequence_lengths(state.sequences, decoder.eos_id)
    return Decoded(state.sequences, lengths, state.scores)


def _draw(
    logits: Float[Array, "B W V"],
    keys: Key[Array, " B"] | None,
    time: Int[Array, ""],
    config: DecodingConfig,
) -> Int[Array, "B W"]:
    """The next tokens; a row's draws depend on its own key and logits only."""
    if not config.sample:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    assert keys is not None  # `decode` has checked
    logits = keep_top_k(logits / config.temperature, config.top_k)
    logits = keep_top_p(logits, config.top_p)
    now = jax.vmap(jax.random.fold_in, (0, None))(keys, time)
    drawn = jax.vmap(jax.random.categorical)(now, logits)
    return drawn.astype(jnp.int32)
