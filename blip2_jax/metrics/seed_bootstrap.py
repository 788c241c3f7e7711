"""Bootstrap over seeds and examples: means, and paired differences.

Two trainings with the same seed see the same data in the same order, so their scores
are compared seed by seed on the same examples. The intervals draw both again with
replacement: the seeds, and the examples (the same ones for every seed and both sides).
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
    draw_sums,
    percentile_interval,
)


class Estimate(NamedTuple):
    """A score, or a difference of scores, over seeds.

    Attributes:
      value: the mean over seeds.
      interval: of the draws.
      per_seed: the value of each seed.
    """

    value: float
    interval: tuple[float, float]
    per_seed: tuple[float, ...]

    def text(self, signed: bool = False) -> str:
        """Format value and interval for a table."""
        numbers = (self.value, *self.interval)
        value, low, high = (f"{n:+.1f}" if signed else f"{n:.1f}" for n in numbers)
        return f"{value} [{low}, {high}]"


def mean_over_seeds(runs: Sequence[Statistic]) -> Estimate:
    """Estimate the mean score of trainings that differ in their seed.

    Args:
      runs: the same score on the same examples, one per seed.

    Raises:
      ValueError: the examples differ.
    """
    _check_same_examples(runs)
    return _estimate([run.value() for run in runs], _draws(runs))


def paired_difference(
    first: Sequence[Statistic], second: Sequence[Statistic]
) -> Estimate:
    """Estimate the second score minus the first, paired by seed and by example.

    Args:
      first: a score on the same examples, one per seed.
      second: a score on those examples, for the same seeds in the same order.

    Raises:
      ValueError: the examples or the numbers of seeds differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} seeds on one side, {len(second)} on the other")
    _check_same_examples([*first, *second])
    per_seed = [b.value() - a.value() for a, b in zip(first, second, strict=True)]
    return _estimate(per_seed, _draws(second) - _draws(first))


def _check_same_examples(runs: Sequence[Statistic]) -> None:
    ids = list(runs[0].ids)
    for run in runs[1:]:
        if list(run.ids) != ids:
            raise ValueError(
                f"scores of {len(ids)} and of {len(run.ids)} {run.unit}s that are not "
                "the same"
            )


def _draws(runs: Sequence[Statistic]) -> Float[Array, " samples"]:
    """Average the scores of drawn examples over drawn seeds (fixed random seed)."""
    rng = np.random.default_rng(SEED)
    parts = np.concatenate([run.parts for run in runs], axis=1).astype(np.float64)
    sums = np.split(draw_sums(parts, SAMPLES, rng), len(runs), axis=1)
    scores = np.stack(
        [run.score(own) for run, own in zip(runs, sums, strict=True)], axis=1
    )
    seeds = rng.integers(0, len(runs), (SAMPLES, len(runs)))
    return np.take_along_axis(scores, seeds, axis=1).mean(axis=1)


def _estimate(per_seed: Sequence[float], draws: Float[Array, " samples"]) -> Estimate:
    interval = percentile_interval(draws, LEVEL)
    return Estimate(float(np.mean(per_seed)), interval, tuple(per_seed))
