"""Images, or their features, on the command line: single ones, folders and tars."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from blip2_jax.cli.options import CommandParser
from blip2_jax.parallel.files import read_array

if TYPE_CHECKING:
    from blip2_jax.inference.image_sets import ImageSet


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Images or features as the model takes them.

    Attributes:
      names: name of each row, for printing.
      rows: one image, or its features, for each row.
      keyword: "images" or "features".
    """

    names: list[str]
    rows: Any
    keyword: str

    def repeated(self, times: int) -> dict[str, Any]:
        """Return keyword arguments with each row repeated `times` times."""
        return {self.keyword: [row for row in self.rows for _ in range(times)]}

    def together(self) -> Inputs:
        """Return all rows as one row."""
        return Inputs([" + ".join(self.names)], [list(self.rows)], self.keyword)

    def batches(self, size: int) -> Iterator[Inputs]:
        """Yield the rows in batches of at most `size`."""
        for start in range(0, len(self.names), size):
            rows = slice(start, start + size)
            yield Inputs(self.names[rows], self.rows[rows], self.keyword)


def add_image_options(parser: CommandParser, folder_help: str) -> None:
    """Add `--image`, `--features` and `--images`, of which one is given.

    Args:
      parser: parser of the command.
      folder_help: help of `--images`.
    """
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument(
        "--image",
        nargs="+",
        metavar="FILE",
        help="image files, URLs, or example pictures: shapes:0, shapes:1, ...",
    )
    images.add_argument(
        "--features", metavar="FILE.npy", help="features, [P, D] or [B, P, D]"
    )
    images.add_argument("--images", nargs="+", metavar="PATH", help=folder_help)


def read_inputs(arguments: argparse.Namespace) -> Inputs:
    """Decode `--image`, or read `--features`, before the model is loaded."""
    if arguments.features:
        rows = read_array(arguments.features)
        rows = rows if rows.ndim > 2 else rows[None]
        names = [f"{arguments.features}[{index}]" for index in range(len(rows))]
        return Inputs(names, rows, "features")
    from blip2_jax.inference.inputs import as_pixels

    images = [as_pixels(path) for path in arguments.image]
    return Inputs(arguments.image, images, "images")


@contextlib.contextmanager
def open_image_set(patterns: list[str]) -> Iterator[ImageSet]:
    """Open the images of `--images`, whose list is deleted at the end."""
    from blip2_jax.inference import image_sets

    with tempfile.TemporaryDirectory() as directory:
        if not image_sets.is_tars(patterns):
            image_sets.write_list(patterns, pathlib.Path(directory))
        yield image_sets.open_images(patterns, pathlib.Path(directory))


def set_batches(images: ImageSet, image_size: int, batch_size: int) -> Iterator[Inputs]:
    """Yield the readable images of a set; the others are named on stderr.

    Raises:
      ValueError: none is readable.
    """
    from blip2_jax.inference import image_batches
    from blip2_jax.parallel.worker_places import available_cores

    loaded = image_batches.load_images(
        images, 0, len(images), image_size, batch_size, len(available_cores())
    )
    count = 0
    for batch in image_batches.batches(loaded, batch_size):
        for image in batch:
            if image.broken is not None:
                print(f"left out: {image.broken}", file=sys.stderr, flush=True)
        readable = [image for image in batch if image.broken is None]
        count += len(readable)
        if readable:
            names = [image.name for image in readable]
            yield Inputs(names, image_batches.stack_pixels(readable), "images")
    if not count:
        raise ValueError(f"none of {len(images):,} images can be read")
