"""Records of trainings that were repeated with other seeds: their mean, or difference.

    python -m blip2_jax.evaluation.compare_seeds A_SEED0.json A_SEED1.json ... \
        --against B_SEED0.json B_SEED1.json ...

prints every score that the records share as its mean over seeds, with its interval and
each seed's; with `--against` that of the other side, and the first less the other,
paired by seed (in the order given) and by example (`seeds`).
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator, Sequence

from blip2_jax.evaluation.examples import read_examples, statistics_of
from blip2_jax.evaluation.seeds import Estimate, difference, over_seeds
from blip2_jax.metrics.bootstrap import Statistic

Scores = dict[str, Statistic]


def read_scores(record: pathlib.Path) -> Scores:
    """The scores of a record's examples, which stand beside it."""
    return statistics_of(read_examples(record.with_suffix(".examples.jsonl")))


def lines(runs: Sequence[Scores], against: Sequence[Scores] = ()) -> Iterator[str]:
    """What is printed: of every score that all have, its estimates.

    Args:
      runs: of each seed.
      against: of the same seeds in the same order; (): no difference.
    """
    shared = [name for name in runs[0] if all(name in e for e in (*runs, *against))]
    for name in shared:
        first = [run[name] for run in runs]
        yield _line(name, over_seeds(first))
        if against:
            other = [run[name] for run in against]
            yield _line(f"{name}, against", over_seeds(other))
            yield _line(f"{name}, less it", difference(other, first), signed=True)


def _line(name: str, found: Estimate, signed: bool = False) -> str:
    each = ", ".join(
        f"{value:+.1f}" if signed else f"{value:.1f}" for value in found.each
    )
    return f"{name:>30}  {found.text(signed)}  ({each})"


def main() -> None:
    """Parse and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="+", type=pathlib.Path)
    parser.add_argument("--against", nargs="+", type=pathlib.Path, default=[])
    arguments = parser.parse_args()
    sides = (arguments.records, arguments.against)
    runs, against = ([read_scores(path) for path in side] for side in sides)
    print("\n".join(lines(runs, against)))


if __name__ == "__main__":
    main()
