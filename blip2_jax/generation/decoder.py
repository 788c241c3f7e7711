"""What decoding needs of a model, and what it gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model's incremental decoding with its parameters bound.

    The prefix (image, prompt, start token) is computed once per row and shared by
    the row's W beams. New tokens have W x N slots: slot t * W + w belongs to beam w
    at time t. A beam does not copy its past when it forks; `visible` says which
    slots it came through.

    Attributes:
      init_generated: (prefix, W, N) -> empty caches for W x N new tokens a row.
      decode_step: (ids[B,W], time, prefix, generated, visible[B,W,N*W]) ->
        (logits [B,W,V] fp32 of the following token, generated), where beam w's keys
        and values are those of slot time * W + w. `visible` includes that slot.
      eos_id: the token that ends a sequence.
      pad_id: the token that fills up behind it.
    """

    init_generated: Callable[[Any, int, int], Any]
    decode_step: Callable[..., tuple[Float[Array, "B W V"], Any]]
    eos_id: int
    pad_id: int


@flax.struct.dataclass
class Decoded:
    """Results, best first (R = num_return_sequences).

    Attributes:
      ids: new tokens, end of sequence included where there is one, then padding.
      lengths: how many of them count, end of sequence included.
      scores: beam search: sum of log-probabilities / length ** length_penalty;
        greedy and sampling: the sum of the model's log-probabilities.
    """

    ids: Int[Array, "B R N"]
    lengths: Int[Array, "B R"]
    scores: Float[Array, "B R"]


def visible_slots(
    ancestors: Int[Array, "B W N"], time: Int[Array, ""]
) -> Bool[Array, "B W N*W"]:
    """Which slots hold a beam's own past, its token of this time included.

    `ancestors[b, w, t]` is the beam that beam w of row b was at time t. With W = 2,
    N = 3, time = 1 and a beam 1 that forked from beam 0 after time 0:

        ancestors         visible (slots 0 1 of time 0, then of times 1, 2)
        beam 0: 0 0 .     1 0   1 0   0 0
        beam 1: 0 1 .     1 0   0 1   0 0
    """
    batch, beams, steps = ancestors.shape
    own = ancestors[..., None] == jnp.arange(beams)  # [B,W,N,W]
    own &= jnp.arange(steps)[:, None] <= time
    return own.reshape(batch, beams, steps * beams)


def sequence_lengths(ids: Int[Array, "*X N"], eos_id: int) -> Int[Array, "*X"]:
    """Tokens up to the first `eos_id`, itself included; N where there is none."""
    ends = ids == eos_id
    first = jnp.argmax(ends, axis=-1) + 1
    return jnp.where(ends.any(axis=-1), first, ids.shape[-1])


def select_beams(values: jax.Array, parents: Int[Array, "B W"]) -> jax.Array:
    """Rows `parents` of the second axis: [B,V,...] -> [B,W,...]."""
    shape = parents.shape + (1,) * (values.ndim - 2)
    return jnp.take_along_axis(values, parents.reshape(shape), axis=1)
