"""The captions of an image among which CapFilt chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from blip2_jax.data.text.tokenizers import clean_caption

WEB, GENERATED = ORIGINS = ("web", "generated")
_DIGITS = 6  # of scores in files


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A caption of an image.

    Attributes:
      text: the caption.
      origin: `WEB` or `GENERATED`.
      times: number of the image's captions that training would read as this one.
    """

    text: str
    origin: str
    times: int = 1


@dataclasses.dataclass(frozen=True)
class RankedCaptions:
    """The candidates of an image with their scores.

    Attributes:
      candidates: in the order of `collect_candidates`.
      scores: similarity of each with the image.
      kept: indices of the candidates that are kept, best first.
    """

    candidates: Sequence[Candidate]
    scores: Sequence[float]
    kept: Sequence[int]

    def as_json(self) -> dict[str, Any]:
        """Return the captions as they are stored beside the image.

        Training reads "captions". Scores are rounded to `_DIGITS` decimals.
        """
        scores = [round(score, _DIGITS) for score in self.scores]
        return {
            "captions": [self.candidates[index].text for index in self.kept],
            "scores": [scores[index] for index in self.kept],
            "candidates": [
                dataclasses.asdict(candidate)
                | {"score": scores[index], "kept": index in self.kept}
                for index, candidate in enumerate(self.candidates)
            ],
        }


def collect_candidates(web: Iterable[str], generated: Iterable[str]) -> list[Candidate]:
    """Collect the captions of an image: those of the web, then the generated ones.

    Captions that are equal after the cleaning of training (`clean_caption`) are merged
    into the first of them. Captions of which cleaning leaves nothing are dropped.
    """
    by_text: dict[str, Candidate] = {}
    for origin, captions in ((WEB, web), (GENERATED, generated)):
        for caption in captions:
            cleaned = clean_caption(caption)
            if not cleaned:
                continue
            first = by_text.get(cleaned)
            if first is None:
                by_text[cleaned] = Candidate(" ".join(caption.split()), origin)
            else:
                by_text[cleaned] = dataclasses.replace(first, times=first.times + 1)
    return list(by_text.values())


def count_empty(captions: Iterable[str]) -> int:
    """Count the captions that `collect_candidates` drops."""
    return sum(not clean_caption(caption) for caption in captions)


def rank_candidates(
    candidates: Sequence[Candidate], scores: Float[Array, " captions"], keep: int
) -> RankedCaptions:
    """Choose the candidates with the highest scores.

    Of equal scores the earlier candidate is the better one, so that a web caption is
    preferred to a generated one.

    Args:
      candidates: captions of an image.
      scores: similarity of each with the image.
      keep: number of captions to keep; fewer are kept if there are not as many.
    """
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    best = [int(index) for index in order[:keep]]
    return RankedCaptions(candidates, [float(score) for score in scores], best)
