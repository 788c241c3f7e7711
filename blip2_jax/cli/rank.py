r"""Rank candidate texts of each image by their log-probability, best first.

    blip2-jax rank --model shapes --image shapes:0 --question "what color is it?" \
        --text red green blue
    blip2-jax rank --model RUN --images photos/ --text_file classes.txt \
        --prompt "a photo of a" --top 5 --out classes.jsonl

Prints a table, for each image a line for each text. `score` is the sum of the
log-probabilities of the text's tokens and of the end token, divided by
length ** length_penalty. `--out` writes the rows as JSON lines, with `candidate`, the
place of the text in the list (from 0). Images that cannot be read are named on stderr.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blip2_jax.cli.image_inputs import Inputs
from blip2_jax.cli.options import CommandParser, run_command
from blip2_jax.cli.shard_options import parse_count
from blip2_jax.cli.text_scoring import DIGITS, Row, add_scoring_options, score_images

if TYPE_CHECKING:
    from blip2_jax.inference.model import Blip2

COLUMNS = {"rank": 4, "score": 10}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("rank", __doc__)
    add_scoring_options(parser)
    parser.add_argument(
        "--length_penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="0 ranks by the sum over the tokens, 1 by their mean",
    )
    parser.add_argument(
        "--top",
        type=parse_count,
        metavar="N",
        help="number of texts to keep of each image (default: all)",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print or write the rankings; returns the exit code."""
    rank = functools.partial(
        rank_batch, length_penalty=arguments.length_penalty, top=arguments.top
    )
    score_images(arguments, COLUMNS, rank)
    return 0


def rank_batch(
    model: Blip2,
    images: Inputs,
    texts: list[str],
    options: dict[str, Any],
    *,
    length_penalty: float,
    top: int | None,
) -> list[Row]:
    """Return the rows about a batch of images: the best texts of each."""
    rankings = model.rank(
        candidates=texts, length_penalty=length_penalty, **images.repeated(1), **options
    )
    return [
        {
            "image": name,
            "rank": place,
            "text": ranked.text,
            "score": round(ranked.score, DIGITS),
            "candidate": ranked.candidate,
        }
        for name, ranking in zip(images.names, rankings, strict=True)
        for place, ranked in enumerate(ranking[:top], 1)
    ]


if __name__ == "__main__":
    sys.exit(main())
