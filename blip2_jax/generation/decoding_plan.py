"""Decoding settings, split into what a program is compiled for and what it reads.

Each `DecodingPlan` needs a compiled program of its own. Everything that can be an
argument of the program is one (`DecodingValues`), so that other penalties, temperatures
or numbers of tokens compile nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from blip2_jax.generation.decoding_config import DecodingConfig

# Top-k sampling selects the next power of two of candidates, and at least so many.
MIN_CANDIDATES = 64


@dataclasses.dataclass(frozen=True)
class DecodingPlan:
    """The static part of the settings.

    Attributes:
      num_beams: number of beams; 1 selects greedy decoding or sampling.
      sequences: sequences per row: the beams, or independent samples.
      slots: N, the size of the arrays of new tokens; at least their maximum number.
      sample: sample tokens.
      convention: see `DecodingConfig`.
      penalizes_repetition: the repetition penalty is not 1.
      candidates: number of tokens that top-k sampling selects from; 0: top_k is unused.
      uses_top_p: top_p is below 1.
    """

    num_beams: int
    sequences: int
    slots: int
    sample: bool
    convention: str
    penalizes_repetition: bool
    candidates: int
    uses_top_p: bool


@flax.struct.dataclass
class DecodingValues:
    """The settings that a compiled program takes as arguments.

    Attributes:
      max_new_tokens: maximum number of new tokens.
      min_new_tokens: minimum number of tokens before the end-of-sequence token.
      repetition_penalty: see `DecodingConfig`.
      temperature: divisor of the logits before sampling.
      top_k: number of most likely tokens to sample from, if the plan has `candidates`.
      dropped_share: 1 - top_p.
      divisors: divisor of a finished sequence's score by its length.
      stop_divisors: divisor of the open beams' scores in the stopping test, by their
        length.
      stops_early: a row ends as soon as it has `num_beams` results.
    """

    max_new_tokens: Int[Array, ""]
    min_new_tokens: Int[Array, ""]
    repetition_penalty: Float[Array, ""]
    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    dropped_share: Float[Array, ""]
    divisors: Float[Array, " N+2"]
    stop_divisors: Float[Array, " N+1"]
    stops_early: Bool[Array, ""]


def split_config(
    config: DecodingConfig, slots: int | None = None, prompt_tokens: int = 1
) -> tuple[DecodingPlan, DecodingValues]:
    """Split settings into a plan and the values of its program.

    Settings that do not apply are the same in all plans: those of sampling in beam
    search, and the convention without it.

    Args:
      config: the settings.
      slots: N, at least `max_new_tokens`; None: `max_new_tokens`.
      prompt_tokens: number of tokens before the first new one, start token included.
        Convention `original` adds them to the lengths of beam search.
    """
    slots = slots or int(config.max_new_tokens)
    searches, samples = config.num_beams > 1, bool(config.sample)
    plan = DecodingPlan(
        num_beams=int(config.num_beams),
        sequences=int(config.num_beams if searches else config.num_return_sequences),
        slots=slots,
        sample=samples,
        convention=config.convention if searches else "transformers5",
        penalizes_repetition=bool(config.repetition_penalty != 1),
        candidates=_candidates(config.top_k) if samples else 0,
        uses_top_p=samples and bool(config.top_p < 1),
    )
    divisors: Any = _divisors(config, slots + 2, prompt_tokens)
    stop_divisors: Any = _stop_divisors(config, divisors)
    scalar: Any = np.asarray  # arrays of NumPy become those of JAX in the program
    values = DecodingValues(
        max_new_tokens=scalar(config.max_new_tokens, np.int32),
        min_new_tokens=scalar(config.min_new_tokens, np.int32),
        repetition_penalty=scalar(config.repetition_penalty, np.float32),
        temperature=scalar(config.temperature, np.float32),
        top_k=scalar(min(config.top_k, np.iinfo(np.int32).max), np.int32),
        dropped_share=scalar(1.0 - float(config.top_p), np.float32),
        divisors=divisors,
        stop_divisors=stop_divisors,
        stops_early=scalar(config.early_stopping not in (False, "never"), np.bool_),
    )
    return plan, values


def _candidates(top_k: int) -> int:
    if top_k == 0:
        return 0
    return max(MIN_CANDIDATES, 1 << (int(top_k) - 1).bit_length())


def _divisors(
    config: DecodingConfig, count: int, prompt_tokens: int
) -> Float[np.ndarray, " lengths"]:
    """Return length ** length_penalty for lengths below `count`, in fp32.

    Searches index the table as if `start_tokens` tokens preceded the new ones; longer
    prompts shift its values.
    """
    lengths = np.arange(count) + config.start_tokens * (prompt_tokens - 1)
    lengths = np.maximum(lengths, 1)  # no sequence has length 0
    powers = lengths.astype(np.float64) ** float(config.length_penalty)
    return powers.astype(np.float32)


def _stop_divisors(
    config: DecodingConfig, divisors: Float[np.ndarray, " N+2"]
) -> Float[np.ndarray, " N+1"]:
    """Return the divisors of open beams: of their length, or of the longest one."""
    start = config.start_tokens
    if config.early_stopping == "never" and config.length_penalty > 0:
        longest = divisors[config.max_new_tokens + start]
        return np.full(len(divisors) - 1, longest, np.float32)
    return divisors[start : start + len(divisors) - 1]
