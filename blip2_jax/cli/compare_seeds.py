"""Compare training runs that were repeated with other seeds.

    blip2-jax compare_seeds A_0.json A_1.json
    blip2-jax compare_seeds A_0.json A_1.json --against B_0.json B_1.json

A record is a file that `blip2-jax evaluate` wrote, with its examples beside it. Prints
the mean over seeds of every score that the records share, with its interval and the
score of each seed. With `--against` also prints the mean of the other side and the
first minus the other, paired by seed (in the order given) and by example.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from blip2_jax.cli.options import CommandParser, run_command
from blip2_jax.parallel.paths import as_path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("compare_seeds", __doc__)
    parser.add_argument(
        "records",
        nargs="+",
        type=as_path,
        metavar="RECORD",
        help="JSON records, one per seed",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        type=as_path,
        default=[],
        metavar="RECORD",
        help="records of the same seeds to compare with",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison; returns the exit code."""
    from blip2_jax.evaluation.compare_seeds import compare_seeds, read_statistics

    runs = [read_statistics(path) for path in arguments.records]
    against = [read_statistics(path) for path in arguments.against]
    for line in compare_seeds(runs, against):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
