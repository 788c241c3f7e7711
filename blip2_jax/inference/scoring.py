"""Scores and rankings of given texts, and scores of generated ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree
from numpy import ndarray as Array

from blip2_jax.generation import token_scores
from blip2_jax.inference import inputs, programs
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.nn.kv_cache import PrefixKV


class ScoredText(NamedTuple):
    """A generated text and its scores.

    Attributes:
      text: the text.
      score: what decoding ranks results by. Beam search: the sum of log-probabilities,
        after the repetition penalty, divided by length ** length_penalty. Greedy
        decoding and sampling: `log_prob`.
      log_prob: sum of `token_log_probs`.
      token_ids: [N] the tokens, with the end token if there is one.
      token_log_probs: [N] fp32 log-probabilities of the tokens under the model, before
        temperature, penalties and minimum length.
    """

    text: str
    score: float
    log_prob: float
    token_ids: Int[Array, " N"]
    token_log_probs: Float[Array, " N"]


class TextScores(NamedTuple):
    """Log-probabilities of given texts, each followed by the end token.

    Attributes:
      log_probs: [B] fp32 sums over the tokens of each text.
      lengths: [B] numbers of tokens, the end token included.
      token_log_probs: [B, N] fp32 log-probability of each token given image, prompt
        and the tokens before it; 0 after the end.
      token_ids: [B, N] the tokens.
    """

    log_probs: Float[Array, " B"]
    lengths: Int[Array, " B"]
    token_log_probs: Float[Array, "B N"]
    token_ids: Int[Array, "B N"]

    @property
    def mean_log_probs(self) -> Float[Array, " B"]:
        """Mean over the tokens of each text: minus the language-modelling loss."""
        return self.log_probs / self.lengths


class RankedText(NamedTuple):
    """A candidate text and its place in the list of candidates.

    Attributes:
      text: the candidate.
      score: its log-probability / length ** length_penalty.
      candidate: its index in the list of candidates.
    """

    text: str
    score: float
    candidate: int


def text_scores(
    ids: Int[Array, "B N"], mask: Bool[Array, "B N"], log_probs: Float[Array, "B N"]
) -> TextScores:
    """Collect the scores of texts.

    Args:
      ids: tokens, padded on the right.
      mask: True = a real token.
      log_probs: log-probabilities of the tokens; those of padding are ignored.
    """
    lengths = mask.sum(axis=1)
    log_probs = np.where(mask, log_probs, np.float32(0))[:, : lengths.max()]
    return TextScores(
        log_probs.sum(axis=1), lengths, log_probs, ids[:, : lengths.max()]
    )


def rank_texts(
    candidates: Sequence[Sequence[str]], scores: TextScores, length_penalty: float
) -> list[list[RankedText]]:
    """Sort the candidates of each row, best first.

    Args:
      candidates: candidates of each row.
      scores: scores of all candidates, row after row.
      length_penalty: see `RankedText.score`.
    """
    values = iter(scores.log_probs / scores.lengths ** float(length_penalty))
    rows = [
        [RankedText(text, float(next(values)), i) for i, text in enumerate(texts)]
        for texts in candidates
    ]
    return [sorted(row, key=lambda ranked: -ranked.score) for row in rows]


def as_candidates(candidates: Any) -> list[list[str]]:
    """Return one list of candidates for all rows, or one list per row.

    Args:
      candidates: strings, or a list of strings for each row.

    Raises:
      TypeError: `candidates` has another form.
      ValueError: there are none.
    """
    rows = [candidates] if isinstance(candidates, str) else list(candidates)
    if all(isinstance(row, str) for row in rows):
        return [inputs.as_texts(rows, "candidates")]
    return [inputs.as_texts(row, "candidates") for row in rows]


def group_rows(keys: Sequence[Any]) -> list[list[int]]:
    """List the rows that have each key, in the order of the keys' first rows."""
    groups: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def text_blocks(groups: Sequence[Sequence[int]], width: int) -> Iterator[Array]:
    """Arrange groups of rows in blocks [groups, width].

    The last row of a group fills the places that are left.
    """
    for start in range(0, max(map(len, groups)), width):
        columns = range(start, start + width)
        yield np.array(
            [
                [group[min(column, len(group) - 1)] for column in columns]
                for group in groups
            ]
        )


@programs.compile_function(static=("model",))
def token_log_probs(
    model: Blip2Stage1 | Blip2Stage2,
    params: PyTree,
    logits: Float[jax.Array, "B V"],
    prefix: PrefixKV,
    ids: Int[jax.Array, "B W N"],
    length: Int[jax.Array, ""],
    weights: PyTree = None,
) -> Float[jax.Array, "B W N"]:
    """Compute log-probabilities of tokens; see `token_scores.token_log_probs`.

    Args:
      model: Flax module. Stage 1 writes texts with the Q-Former, stage 2 with the
        language model.
      params: its parameters.
      logits: from the prefill.
      prefix: from the prefill.
      ids: the tokens.
      length: number of tokens to read.
      weights: the argument of `prefill_language_model`.
    """

    def bind() -> Any:
        bound = model.bind({"params": params})
        is_stage2 = isinstance(bound, Blip2Stage2)
        return bound.language_model if is_stage2 else bound.qformer

    prefix = dataclasses.replace(prefix, weights=weights)
    return token_scores.token_log_probs(bind, logits, prefix, ids, length)
