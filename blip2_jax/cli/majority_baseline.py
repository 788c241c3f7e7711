"""Score the most common training answers on test questions, without a model.

    blip2-jax majority_baseline --train daquar_vqa --test eval/daquar_vqa
    blip2-jax majority_baseline --train my_training.py --test my_evaluation.py

Answers every question of the second configuration's `data` with the most common answer
in the first one's `data.train`, and with the most common answer to questions that begin
with the same two words. Prints the exact match of both in percent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from blip2_jax.cli.config_options import load_config
from blip2_jax.cli.options import CommandParser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("majority_baseline", __doc__)
    for name, description in (
        ("train", "configuration of a training run"),
        ("test", "configuration of an evaluation"),
    ):
        parser.add_argument(
            f"--{name}", required=True, metavar="NAME[:ARGUMENT]", help=description
        )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the scores; returns the exit code."""
    from blip2_jax.evaluation.majority_baseline import (
        answered_questions,
        majority_scores,
    )

    train = answered_questions(load_config(arguments.train).data.train)
    test = answered_questions(load_config(arguments.test).data)
    for name, score in majority_scores(train, test).items():
        print(f"{score:6.2f}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
