"""Percentile bootstrap: how far a score would move with other examples.

Examples are drawn with replacement, as many as there are, and every score is computed
from each draw (Efron and Tibshirani 1993, chapter 13). Scores of one unit (images,
texts or questions) share the draws; so do two records that are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

SAMPLES, SEED, LEVEL = 1000, 0, 0.95


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A score that is a function of sums over examples.

    Attributes:
      unit: what is drawn: "image", "text" or "question".
      ids: of the examples.
      parts: what each example adds to each of the sums.
      score: maps sums [..., sums] to scores [...]; NaN where there is no score.
    """

    unit: str
    ids: Sequence[str]
    parts: Float[Array, "examples sums"]
    score: Callable[[Float[Array, "... sums"]], Any]

    def value(self) -> float:
        """Compute the score of all examples."""
        return float(self.score(self.parts.sum(axis=0)))


class Difference(NamedTuple):
    """The second score minus the first, on the same examples.

    Attributes:
      value: on all examples.
      interval: of the draws.
      crossing: twice the share of draws on the rarer side of zero, at most 1; small if
        the sign of the difference does not depend on the examples.
    """

    value: float
    interval: tuple[float, float]
    crossing: float


def mean(
    values: Float[Array, " examples"], counted: Float[Array, " examples"]
) -> Float[Array, "examples 2"]:
    """Return the parts of a mean over the examples with `counted` 1, for `ratio`."""
    return np.stack([values * counted, counted], axis=1)


def ratio(sums: Float[Array, "... 2"]) -> Any:
    """Compute a mean from its sums; NaN if no example counts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def intervals(
    statistics: Mapping[str, Statistic],
    *,
    samples: int = SAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> dict[str, tuple[float, float]]:
    """Compute the central interval of each statistic over the draws.

    Args:
      statistics: by name.
      samples: number of draws.
      seed: of the draws.
      level: share of the draws inside the interval; equal shares lie below and above.
    """
    draws = _draws(statistics, samples, seed)
    return {name: percentile_interval(draw, level) for name, draw in draws.items()}


def differences(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    *,
    samples: int = SAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> dict[str, Difference]:
    """Compute paired differences of the scores that both sides have.

    Args:
      first: statistics by name.
      second: statistics of the same examples, by name.
      samples: number of draws.
      seed: of the draws.
      level: share of the draws inside an interval.

    Raises:
      ValueError: the examples or their order differ.
    """
    names = [name for name in first if name in second]
    for name in names:
        if list(first[name].ids) != list(second[name].ids):
            raise ValueError(
                f"{name} was measured on {len(first[name].ids)} and on "
                f"{len(second[name].ids)} {first[name].unit}s that are not the same"
            )
    left, right = (
        _draws({name: side[name] for name in names}, samples, seed)
        for side in (first, second)
    )
    return {
        name: Difference(
            second[name].value() - first[name].value(),
            percentile_interval(right[name] - left[name], level),
            _crossing(right[name] - left[name]),
        )
        for name in names
    }


def _draws(
    statistics: Mapping[str, Statistic], samples: int, seed: int
) -> dict[str, Float[Array, " samples"]]:
    """Compute every statistic on every draw; equal units share their draws."""
    result = {}
    units = {(each.unit, len(each.ids)) for each in statistics.values()}
    for unit, count in sorted(units):
        names = [
            name
            for name, each in statistics.items()
            if (each.unit, len(each.ids)) == (unit, count)
        ]
        parts = np.concatenate([statistics[name].parts for name in names], axis=1)
        rng = np.random.default_rng(seed)
        sums = draw_sums(parts.astype(np.float64), samples, rng)
        widths = [statistics[name].parts.shape[1] for name in names]
        for name, own in zip(
            names, np.split(sums, np.cumsum(widths)[:-1], axis=1), strict=True
        ):
            result[name] = statistics[name].score(own)
    return result


def draw_sums(
    parts: Float[Array, "examples sums"], samples: int, rng: np.random.Generator
) -> Float[Array, "samples sums"]:
    """Sum the parts of each draw; a draw takes all examples with replacement."""
    count = len(parts)
    sums = np.empty((samples, parts.shape[1]))
    for sample in range(samples):
        multiplicity = np.bincount(rng.integers(0, count, count), minlength=count)
        sums[sample] = multiplicity @ parts
    return sums


def percentile_interval(
    values: Float[Array, " samples"], level: float
) -> tuple[float, float]:
    """Return the central interval with a share `level` of the non-NaN values."""
    outside = 50 * (1 - level)
    low, high = np.nanpercentile(values, (outside, 100 - outside))
    return float(low), float(high)


def _crossing(values: Float[Array, " samples"]) -> float:
    rarer = np.minimum(np.mean(values <= 0), np.mean(values >= 0))
    return float(np.minimum(2 * rarer, 1))
