"""Comparison of trainings that were repeated with other seeds, as lines of text."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence

from blip2_jax.evaluation.examples import example_statistics, read_examples
from blip2_jax.metrics.bootstrap import Statistic
from blip2_jax.metrics.seed_bootstrap import (
    Estimate,
    mean_over_seeds,
    paired_difference,
)


def read_statistics(record: pathlib.Path) -> dict[str, Statistic]:
    """Return the scores of the examples that stand beside a record."""
    return example_statistics(read_examples(record.with_suffix(".examples.jsonl")))


def compare_seeds(
    runs: Sequence[Mapping[str, Statistic]],
    against: Sequence[Mapping[str, Statistic]] = (),
) -> Iterator[str]:
    """Format the estimates of every score that all runs have.

    Args:
      runs: one per seed.
      against: runs of the same seeds in the same order; (): no difference.

    Yields:
      For each score a line with its mean over seeds; with `against` also the mean of
      the other runs and the difference, paired by seed and by example.
    """
    shared = [name for name in runs[0] if all(name in e for e in (*runs, *against))]
    for name in shared:
        first = [run[name] for run in runs]
        yield _line(name, mean_over_seeds(first))
        if against:
            other = [run[name] for run in against]
            yield _line(f"{name}, against", mean_over_seeds(other))
            difference = paired_difference(other, first)
            yield _line(f"{name}, less it", difference, signed=True)


def _line(name: str, estimate: Estimate, signed: bool = False) -> str:
    per_seed = ", ".join(
        f"{value:+.1f}" if signed else f"{value:.1f}" for value in estimate.per_seed
    )
    return f"{name:>30}  {estimate.text(signed)}  ({per_seed})"
