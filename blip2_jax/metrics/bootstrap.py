"""How far a score would move with other examples: the percentile bootstrap.

Examples are drawn again with replacement, as many as there are, and every score is
computed from each draw (Efron and Tibshirani 1993, chapter 13). Scores of one unit
(images, texts or questions) share the draws; so do two records that are compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

SAMPLES, SEED, LEVEL = 1000, 0, 0.95


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A score that is a function of sums over examples.

    Attributes:
      unit: what is drawn again: "image", "text" or "question".
      ids: of the examples.
      parts: what each example adds to each of K sums.
      score: from sums [..., K] to the score; not a number where it has none.
    """

    unit: str
    ids: Sequence[str]
    parts: Float[Array, "examples sums"]
    score: Callable[[Float[Array, "... sums"]], Float[Array, "..."]]

    def value(self) -> float:
        """The score of the examples as they are."""
        return float(self.score(self.parts.sum(axis=0)))


class Difference(NamedTuple):
    """The score of the second less that of the first, on the same examples.

    Attributes:
      value: of the examples as they are.
      interval: of the draws.
      crossing: twice the share of draws on the rarer side of zero, at most 1: small
        where the sign of the difference does not depend on the examples.
    """

    value: float
    interval: tuple[float, float]
    crossing: float


def mean(
    values: Float[Array, " examples"], counted: Float[Array, " examples"]
) -> Float[Array, "examples 2"]:
    """Parts of a mean over the examples that count, for `ratio`."""
    return np.stack([values * counted, counted], axis=1)


def ratio(sums: Float[Array, "... 2"]) -> Float[Array, "..."]:
    """A mean from its sums; not a number where nothing counts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def intervals(
    statistics: Mapping[str, Statistic],
    *,
    samples: int = SAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> dict[str, tuple[float, float]]:
    """The interval that holds a share `level` of the draws' scores, by name.

    Args:
      statistics: by name.
      samples: how many draws.
      seed: of the draws.
      level: between 0 and 1; as much is left out above as below.
    """
    drawn = _draws(statistics, samples, seed)
    return {name: percentiles(values, level) for name, values in drawn.items()}


def differences(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    *,
    samples: int = SAMPLES,
    seed: int = SEED,
    level: float = LEVEL,
) -> dict[str, Difference]:
    """Paired differences of the scores that both have.

    Raises:
      ValueError: the examples are not the same, in the same order.
    """
    names = [name for name in first if name in second]
    for name in names:
        if list(first[name].ids) != list(second[name].ids):
            raise ValueError(
                f"{name} was measured on {len(first[name].ids)} and on "
                f"{len(second[name].ids)} {first[name].unit}s that are not the same"
            )
    left, right = (
        _draws({name: each[name] for name in names}, samples, seed)
        for each in (first, second)
    )
    return {
        name: Difference(
            second[name].value() - first[name].value(),
            percentiles(right[name] - left[name], level),
            _crossing(right[name] - left[name]),
        )
        for name in names
    }


def _draws(
    statistics: Mapping[str, Statistic], samples: int, seed: int
) -> dict[str, Float[Array, " samples"]]:
    """Every statistic of every draw."""
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
        sums = drawn_sums(parts.astype(np.float64), samples, rng)
        widths = [statistics[name].parts.shape[1] for name in names]
        for name, own in zip(
            names, np.split(sums, np.cumsum(widths)[:-1], axis=1), strict=True
        ):
            result[name] = statistics[name].score(own)
    return result


def drawn_sums(
    parts: Float[Array, "examples sums"], samples: int, rng: np.random.Generator
) -> Float[Array, "samples sums"]:
    """The sums of each of `samples` draws of N examples with replacement."""
    count = len(parts)
    sums = np.empty((samples, parts.shape[1]))
    for number in range(samples):
        drawn = np.bincount(rng.integers(0, count, count), minlength=count)
        sums[number] = drawn @ parts
    return sums


def percentiles(values: Float[Array, " samples"], level: float) -> tuple[float, float]:
    """The interval that holds a share `level` of the values that are numbers."""
    outside = 50 * (1 - level)
    low, high = np.nanpercentile(values, (outside, 100 - outside))
    return float(low), float(high)


def _crossing(values: Float[Array, " samples"]) -> float:
    rarer = np.minimum(np.mean(values <= 0), np.mean(values >= 0))
    return float(np.minimum(2 * rarer, 1))
