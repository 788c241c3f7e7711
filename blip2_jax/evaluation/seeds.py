"""Trainings that were repeated with other seeds: means, and paired differences.

Two trainings with the same seed saw the same data in the same order; what they scored
is compared seed by seed, on the same examples. The intervals draw both again with
replacement: the seeds, and the examples, the same ones for every seed and both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from blip2_jax.metrics.bootstrap import (
    LEVEL,
    SAMPLES,
    SEED,
    Statistic,
    drawn_sums,
    percentiles,
)


class Estimate(NamedTuple):
    """A score, or a difference of scores, over seeds.

    Attributes:
      value: the mean over seeds.
      interval: of the draws.
      each: by seed.
    """

    value: float
    interval: tuple[float, float]
    each: tuple[float, ...]

    def text(self, signed: bool = False) -> str:
        """Value and interval, for a table."""
        numbers = (self.value, *self.interval)
        value, low, high = (f"{n:+.1f}" if signed else f"{n:.1f}" for n in numbers)
        return f"{value} [{low}, {high}]"


def over_seeds(runs: Sequence[Statistic]) -> Estimate:
    """The mean score of trainings that differ in their seed.

    Args:
      runs: the same score on the same examples, of each.

    Raises:
      ValueError: the examples differ.
    """
    _check(runs)
    return _estimate([run.value() for run in runs], _draws(runs))


def difference(first: Sequence[Statistic], second: Sequence[Statistic]) -> Estimate:
    """The second kind of training less the first, paired by seed and by example.

    Args:
      first, second: of each kind the same score on the same examples, in the same
        order of seeds.

    Raises:
      ValueError: the examples differ, or the number of seeds.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} seeds on one side, {len(second)} on the other")
    _check([*first, *second])
    each = [b.value() - a.value() for a, b in zip(first, second, strict=True)]
    return _estimate(each, _draws(second) - _draws(first))


def _check(runs: Sequence[Statistic]) -> None:
    ids = list(runs[0].ids)
    for run in runs[1:]:
        if list(run.ids) != ids:
            raise ValueError(
                f"scores of {len(ids)} and of {len(run.ids)} {run.unit}s that are not "
                "the same"
            )


def _draws(runs: Sequence[Statistic]) -> Float[Array, " samples"]:
    """Means over drawn seeds of the scores of drawn examples; the same draws always."""
    rng = np.random.default_rng(SEED)
    parts = np.concatenate([run.parts for run in runs], axis=1).astype(np.float64)
    sums = np.split(drawn_sums(parts, SAMPLES, rng), len(runs), axis=1)
    scores = np.stack(
        [run.score(own) for run, own in zip(runs, sums, strict=True)], axis=1
    )
    seeds = rng.integers(0, len(runs), (SAMPLES, len(runs)))
    return np.take_along_axis(scores, seeds, axis=1).mean(axis=1)


def _estimate(each: Sequence[float], draws: Float[Array, " samples"]) -> Estimate:
    return Estimate(float(np.mean(each)), percentiles(draws, LEVEL), tuple(each))
