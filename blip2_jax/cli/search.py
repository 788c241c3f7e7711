r"""Find the images of a folder that fit a text.

    blip2-jax search --model RUN --index photos.index --images photos/
    blip2-jax search --model RUN --index photos.index "a dog on a beach" "two children"
    blip2-jax search --model RUN --index photos.index --images photos/ --rerank 0 \
        "a dog on a beach"

With `--images`, the index of the folder is built, continued after a stop, or brought up
to date. Without it, the index is opened as it is. Prints, for each text, its best
images with the contrastive cosine and the matching probability.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from blip2_jax.cli.errors import UsageError
from blip2_jax.cli.options import (
    CommandParser,
    add_cache_option,
    add_load_options,
    load_options,
    run_command,
)

if TYPE_CHECKING:
    from blip2_jax.inference.image_index import ImageIndex

SHOWN_BROKEN = 10  # names of broken images that are printed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("search", __doc__)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to search")
    parser.add_argument(
        "--index", required=True, metavar="DIR", help="directory of the index"
    )
    parser.add_argument(
        "--images",
        default="",
        metavar="DIR",
        help="folder to index, with its sub-folders; for a model that was trained on "
        "features, the folder that `blip2-jax features` wrote",
    )
    add_load_options(parser)
    parser.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="images per batch"
    )
    add_cache_option(parser)
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="images for each text"
    )
    parser.add_argument(
        "--rerank",
        type=int,
        default=32,
        metavar="N",
        help="best images that the matching head scores again; 0: none",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Build or open the index and print what it finds; returns the exit code."""
    if not (arguments.images or arguments.texts):
        raise UsageError("nothing to do: give --images, to build an index, or a TEXT")
    if arguments.top < 1 or arguments.rerank < 0:
        raise UsageError("--top is at least 1, --rerank at least 0")
    import blip2_jax
    from blip2_jax.inference.image_index import ImageIndex
    from blip2_jax.perf.compile_cache import enable_compile_cache

    enable_compile_cache(arguments.compile_cache)
    model = blip2_jax.load(**load_options(arguments), batch_size=arguments.batch_size)
    start = time.monotonic()
    if arguments.images:
        index = ImageIndex.build(model, arguments.images, arguments.index)
        for line in describe_build(index, time.monotonic() - start):
            print(line)
    else:
        index = ImageIndex.open(model, arguments.index)
    if arguments.texts:
        hits = index.search(arguments.texts, arguments.top, arguments.rerank)
        for text, found in zip(arguments.texts, hits, strict=True):
            print(f"{text}:")
            for hit in found:
                itm = "" if hit.itm is None else f", match probability {hit.itm:.3f}"
                print(f"  {hit.name}: cosine {hit.itc:.3f}{itm}")
    return 0


def describe_build(index: ImageIndex, seconds: float) -> Iterator[str]:
    """Yield lines about an update of an index."""
    added, changed, removed = index.last_changes
    yield (
        f"{len(index):,} images in the index: {added:,} added, {changed:,} changed, "
        f"{removed:,} removed, in {seconds:.1f} s"
    )
    if broken := index.broken:
        causes = collections.Counter(broken.values())
        counts = ", ".join(f"{cause}: {n:,}" for cause, n in sorted(causes.items()))
        yield f"{len(broken):,} images cannot be read ({counts}):"
        for name, _ in zip(broken, range(SHOWN_BROKEN), strict=False):
            yield f"  {name}: {broken[name]}"
        if len(broken) > SHOWN_BROKEN:
            yield f"  and {len(broken) - SHOWN_BROKEN:,} more"


if __name__ == "__main__":
    sys.exit(main())
