"""The parts that `score` and `rank` share: options, texts, images, tables and files."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from blip2_jax.cli.errors import UsageError
from blip2_jax.cli.image_inputs import (
    Inputs,
    add_image_options,
    open_image_set,
    read_inputs,
    set_batches,
)
from blip2_jax.cli.options import CommandParser, add_load_options, load_model
from blip2_jax.cli.shard_options import parse_count
from blip2_jax.parallel.files import read_text, text_lines
from blip2_jax.parallel.paths import as_path

if TYPE_CHECKING:
    from blip2_jax.inference.model import Blip2

DIGITS = 4  # of scores: further ones depend on the device

Row = dict[str, Any]
# Rows about each image of a batch: (model, images, texts, keyword arguments).
ScoreImages = Callable[["Blip2", Inputs, list[str], dict[str, Any]], list[Row]]


def add_scoring_options(parser: CommandParser) -> None:
    """Add the options that `score_images` reads."""
    add_load_options(parser)
    add_image_options(parser, "a folder, files or glob patterns, or tars")
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument("--text", nargs="+", metavar="TEXT", help="texts to score")
    texts.add_argument(
        "--text_file", metavar="FILE", help="file with one text a line, in UTF-8"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--prompt", metavar="TEXT", help="what the texts follow; default: the model's"
    )
    start.add_argument(
        "--question", metavar="TEXT", help="question that the texts answer (stage 2)"
    )
    parser.add_argument(
        "--batch_size", type=parse_count, default=32, metavar="N", help="images a batch"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="file of JSON lines to write, in place of the table on stdout",
    )


def score_images(
    arguments: argparse.Namespace, columns: Mapping[str, int], score: ScoreImages
) -> None:
    """Print a table of scores, or write them as JSON lines.

    Args:
      arguments: the parsed command line.
      columns: the numbers of the table: keys of the rows, and their widths.
      score: computes the rows about a batch of images.

    Raises:
      UsageError: the options do not fit the model.
      ValueError: no image can be read, or a text is too long.
    """
    texts = read_texts(arguments)
    with contextlib.ExitStack() as stack:
        if arguments.images:
            image_set = stack.enter_context(open_image_set(arguments.images))
        else:
            inputs = read_inputs(arguments)
        size = arguments.batch_size
        model = load_model(arguments, batch_size=size)
        options = text_options(model, arguments)
        if arguments.images:
            batches = set_batches(image_set, image_size(model), size)
        else:
            batches = inputs.batches(size)
        rows = (score(model, batch, texts, options) for batch in batches)
        if arguments.out:
            write_rows(arguments.out, rows)
        else:
            print_rows(columns, rows)


def read_texts(arguments: argparse.Namespace) -> list[str]:
    """Return the texts of the command line or of a file, without empty lines.

    Raises:
      UsageError: there are none.
    """
    if arguments.text_file is None:
        texts = arguments.text
    else:
        texts = text_lines(read_text(as_path(arguments.text_file)))
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise UsageError(f"no text in {arguments.text_file or '--text'}")
    return texts


def text_options(model: Blip2, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the texts follow, as keyword arguments of `score` and `rank`.

    Raises:
      UsageError: a question is given to a stage-1 model.
    """
    import blip2_jax

    if arguments.question is None:
        return {"prompts": arguments.prompt}
    if not isinstance(model, blip2_jax.Blip2Generator):
        raise UsageError(
            f"--question needs a language model; {arguments.model} is a stage-1 model"
        )
    return {"questions": arguments.question}


def image_size(model: Blip2) -> int:
    """Return the size in pixels of the images of a model.

    Raises:
      UsageError: it has no image encoder.
    """
    size: int | None = getattr(model.model.config.vision, "image_size", None)
    if size is None:
        raise UsageError("this model was trained on features: give --features")
    return size


def write_rows(out: str, batches: Iterator[list[Row]]) -> None:
    """Write rows as JSON lines to a file that appears when it is whole."""
    from blip2_jax.parallel.shard_files import whole_file

    count = 0
    with (
        whole_file(as_path(out)) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for rows in batches:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            count += len(rows)
    print(f"{out}: {count:,} rows")


def print_rows(columns: Mapping[str, int], batches: Iterator[list[Row]]) -> None:
    """Print rows as a table: numbers, image, text."""
    for number, rows in enumerate(batches):
        width = max(len(row["image"]) for row in rows)
        if number == 0:
            header = [f"{name:>{size}}" for name, size in columns.items()]
            print("  ".join([*header, f"{'image':<{width}}", "text"]))
        for row in rows:
            numbers = [_number(row[name], size) for name, size in columns.items()]
            line = [*numbers, f"{row['image']:<{width}}", row["text"]]
            print("  ".join(line), flush=True)


def _number(value: float, width: int) -> str:
    digits = f".{DIGITS}f" if isinstance(value, float) else "d"
    return f"{value:>{width}{digits}}"
