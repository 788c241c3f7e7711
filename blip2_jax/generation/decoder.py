"""The interface between a model and a search, and the steps that all searches share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from blip2_jax.generation.decoding_plan import DecodingPlan, DecodingValues
from blip2_jax.nn.kv_cache import GeneratedKV, init_generated


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Incremental decoding of a model with its parameters bound.

    The prefix (image, prompt, start token) is computed once per row and shared by the
    row's W beams. The KV cache of the new tokens has M = N * W slots per row, ordered
    by time and then by beam: beam w writes its token of time t to slot t * W + w. Slots
    never move. When a beam forks, `visible` selects the slots of its ancestors.

    Attributes:
      init_generated: function (prefix, W, N) -> empty cache of N * W slots per row.
      decode_step: function (ids [B,W], time, prefix, generated, visible [B,W,M]) ->
        (fp32 logits [B,W,V] of the next token, updated cache). `ids` are the tokens of
        index `time`, and `visible` includes their own slots.
      eos_id: token that ends a sequence.
      pad_id: token that fills a sequence after its end.
    """

    init_generated: Callable[[Any, int, int], Any]
    decode_step: Callable[..., tuple[Float[Array, "B W V"], Any]]
    eos_id: int
    pad_id: int


def bound_decoder(bind: Callable[[], Any], eos_id: int, pad_id: int) -> Decoder:
    """Return the decoder of a module.

    Args:
      bind: returns the module with its parameters bound. It is called inside the
        decoding loop, because a bound module keeps what its `setup` creates.
      eos_id: see `Decoder`.
      pad_id: see `Decoder`.
    """

    def decode_step(*args: Any) -> tuple[Float[Array, "B W V"], GeneratedKV]:
        return bind().decode_step(*args)

    return Decoder(init_generated, decode_step, eos_id, pad_id)


@flax.struct.dataclass
class Decoded:
    """Results of decoding: the sequences of each row, best first.

    Attributes:
      ids: new tokens with the end-of-sequence token, if there is one, then padding.
      lengths: number of new tokens before the padding.
      scores: beam search: sum of log-probabilities / length ** length_penalty; greedy
        decoding and sampling: sum of the model's log-probabilities.
      log_probs: log-probability of each token under the model; None: not computed.
    """

    ids: Int[Array, "B sequences N"]
    lengths: Int[Array, "B sequences"]
    scores: Float[Array, "B sequences"]
    log_probs: Float[Array, "B sequences N"] | None = None


def visible_slots(
    ancestors: Int[Array, "B W N"], time: Int[Array, ""]
) -> Bool[Array, "B W M"]:
    """Mask the cache slots that each beam may attend to at `time`.

    `ancestors[b, w, t]` is the beam that beam w of row b descends from at time t. For
    W = 2, N = 3, time = 1 and a beam 1 that forked from beam 0 after time 0:

        ancestors         visible (slots 0 1 of time 0, then of times 1 and 2)
        beam 0: 0 0 .     1 0   1 0   0 0
        beam 1: 0 1 .     1 0   0 1   0 0
    """
    batch, beams, steps = ancestors.shape
    visible = ancestors[..., None] == jnp.arange(beams)  # [B,W,N,W]
    visible &= jnp.arange(steps)[:, None] <= time
    return visible.reshape(batch, beams, steps * beams)


def sequence_lengths(
    ids: Int[Array, "... N"], eos_id: int, max_length: Int[Array, ""]
) -> Int[Array, "..."]:
    """Count tokens up to and including the first `eos_id`.

    Args:
      ids: the tokens.
      eos_id: token that ends a sequence.
      max_length: length of a sequence without `eos_id`.
    """
    is_eos = ids == eos_id
    first = jnp.argmax(is_eos, axis=-1) + 1
    return jnp.where(is_eos.any(axis=-1), first, max_length)


def process_scores(
    scores: Float[Array, "B W V"],
    sequences: Int[Array, "B W N"],
    history: Int[Array, "B T"],
    time: Int[Array, ""],
    plan: DecodingPlan,
    values: DecodingValues,
    eos_id: int,
) -> Float[Array, "B W V"]:
    """Apply the repetition penalty and the minimum length to the next token's scores.

    Args:
      scores: logits (greedy decoding, sampling) or log-probabilities (beam search).
      sequences: new tokens; only those of index below `time` are valid.
      history: tokens that the repetition penalty counts from the start; -1 for none.
      time: index of the next token.
      plan: static settings.
      values: the other settings.
      eos_id: token that ends a sequence.
    """
    if plan.penalizes_repetition:
        new = jnp.where(jnp.arange(sequences.shape[-1]) < time, sequences, -1)
        old = jnp.broadcast_to(
            history[:, None], (*sequences.shape[:2], history.shape[-1])
        )
        ids = jnp.concatenate([old, new], axis=-1)
        scores = penalize_repetition(scores, ids, values.repetition_penalty)
    too_early = time < values.min_new_tokens
    is_eos = jnp.arange(scores.shape[-1]) == eos_id
    return jnp.where(too_early & is_eos, -jnp.inf, scores)


def penalize_repetition(
    scores: Float[Array, "B W V"],
    ids: Int[Array, "B W T"],
    penalty: float | Float[Array, ""],
) -> Float[Array, "B W V"]:
    """Divide positive scores of tokens in `ids` by `penalty`; multiply negative ones.

    Keskar et al. 2019 (CTRL), section 4.1. Entries of `ids` outside 0 … V - 1 are
    ignored.
    """
    batch, beams, vocab = scores.shape
    rows, columns = jnp.arange(batch)[:, None, None], jnp.arange(beams)[:, None]
    # A negative index would count from the end, so it becomes V and is dropped.
    valid_ids = jnp.where(ids < 0, vocab, ids)
    occurred = jnp.zeros(scores.shape, bool)
    occurred = occurred.at[rows, columns, valid_ids].set(True, mode="drop")
    penalized = jnp.where(scores < 0, scores * penalty, scores / penalty)
    return jnp.where(occurred, penalized, scores)
