r"""Compute the log-probability of each text given each image.

    blip2-jax score --model shapes --image shapes:0 --text "a red circle" "a blue star"
    blip2-jax score --model RUN --image a.jpg --question "what is red?" --text cup car
    blip2-jax score --model RUN --images photos/ --text_file captions.txt \
        --prompt "a photo of" --out scores.jsonl

Prints a table, a line for each image and text: `log_prob`, the sum over the tokens of
the text and its end token, `mean_log_prob`, their mean, and `tokens`, their number. A
language model scores texts after the prompt or the question, a stage-1 model as
captions. `--out` writes the rows as JSON lines. Images that cannot be read are named
on stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blip2_jax.cli.image_inputs import Inputs
from blip2_jax.cli.options import CommandParser, run_command
from blip2_jax.cli.text_scoring import DIGITS, Row, add_scoring_options, score_images

if TYPE_CHECKING:
    from blip2_jax.inference.model import Blip2

COLUMNS = {"log_prob": 10, "mean_log_prob": 13, "tokens": 6}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("score", __doc__)
    add_scoring_options(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print or write the scores; returns the exit code."""
    score_images(arguments, COLUMNS, score_batch)
    return 0


def score_batch(
    model: Blip2, images: Inputs, texts: list[str], options: dict[str, Any]
) -> list[Row]:
    """Return the rows about a batch of images: every text of every image."""
    count = len(images.names)
    scores = model.score(
        texts=texts * count,
        image_of=[image for image in range(count) for _ in texts],
        **images.repeated(1),
        **options,
    )
    pairs = [(name, text) for name in images.names for text in texts]
    values = zip(scores.log_probs, scores.mean_log_probs, scores.lengths, strict=True)
    return [
        {
            "image": name,
            "text": text,
            "log_prob": round(float(log_prob), DIGITS),
            "mean_log_prob": round(float(mean), DIGITS),
            "tokens": int(length),
        }
        for (name, text), (log_prob, mean, length) in zip(pairs, values, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
