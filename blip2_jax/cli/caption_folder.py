"""The part of `caption` for many images: `--images` and `--out`."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from blip2_jax.cli.errors import FAILURE, UsageError, reading_option
from blip2_jax.cli.options import load_options
from blip2_jax.cli.shard_options import add_shard_options, parse_count, shard_options

FORMATS = ("jsonl", "csv", "txt", "tars")
_SUFFIXES = {".jsonl": "jsonl", ".csv": "csv"}
# Options about single images.
_OTHER_OPTIONS = ("together", "dialogue", "history", "example")


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of many images, other than `--images`."""
    group = parser.add_argument_group("many images (docs/captioning.md)")
    group.add_argument(
        "--out",
        default="",
        metavar="PATH",
        help="file to write, .jsonl or .csv, or a directory of text files or tars",
    )
    group.add_argument(
        "--format",
        choices=FORMATS,
        help="default: by the suffix of --out; of a directory txt",
    )
    group.add_argument(
        "--batch_size", type=parse_count, default=32, metavar="N", help="images a batch"
    )
    group.add_argument(
        "--shard_size",
        type=parse_count,
        metavar="N",
        help="images that are written together (default: 64 to 4096, by their number)",
    )
    add_shard_options(parser)


def check_folder_options(arguments: argparse.Namespace) -> None:
    """Check that the options of many images and of single ones are not mixed.

    Raises:
      UsageError: they are, or the output is missing.
    """
    if not arguments.images:
        if arguments.out:
            raise UsageError("--out needs --images, which takes many images")
        return
    if not arguments.out:
        raise UsageError("--out is missing, e.g. --out captions.jsonl")
    for name in _OTHER_OPTIONS:
        if getattr(arguments, name):
            raise UsageError(f"--{name} is for --image, not for --images")


def caption_folder(arguments: argparse.Namespace, settings: dict[str, Any]) -> int:
    """Write rows about many images; returns the exit code.

    Args:
      arguments: the parsed command line.
      settings: decoding settings.
    """
    from blip2_jax.inference.caption_job import CaptionJob, caption_images
    from blip2_jax.inference.image_requests import ImageRequest
    from blip2_jax.parallel.paths import as_path

    target = as_path(arguments.out)
    request = ImageRequest(
        arguments.prompt,
        tuple(arguments.question or ()),
        tuple(arguments.text or ()),
        arguments.seed,
        settings,
    )
    with reading_option(f"--out {arguments.out}: "):
        job = CaptionJob(
            target,
            arguments.format or _format_of(target),
            tuple(arguments.images),
            load_options(arguments),
            request,
            arguments.batch_size,
            arguments.shard_size or 0,
            arguments.compile_cache,
        )
    summary = caption_images(job, **shard_options(arguments))
    if summary is None:
        index, count = arguments.shard
        print(f"part {index} of {count} is finished; others are not", file=sys.stderr)
        return 0
    broken = sum(summary.broken.values())
    print(f"{arguments.out}: {summary.images - broken:,} of {summary.images:,} images")
    if broken:
        reasons = (f"{count:,} {cause}" for cause, count in summary.broken.items())
        print(f"{job.broken_file}: not readable: {', '.join(reasons)}", file=sys.stderr)
    return 0 if broken < summary.images else FAILURE


def _format_of(target: pathlib.Path) -> str:
    """Return the format that the name of the output selects.

    Raises:
      ValueError: the name has another suffix and is no directory.
    """
    suffix = target.suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if suffix and not target.is_dir():
        raise ValueError(
            f"{suffix} selects no format: name a file with {' or '.join(_SUFFIXES)}, a "
            "directory for texts, or a format by --format"
        )
    return "txt"
