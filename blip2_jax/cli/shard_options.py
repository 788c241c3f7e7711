"""Options of commands whose work is divided into shards (docs/captioning.md)."""

from __future__ import annotations

import argparse
import re
from typing import Any

from blip2_jax.parallel.shard_jobs import RUNNERS


def add_shard_options(
    parser: argparse.ArgumentParser, processes: str = "one for each GPU or TPU chip"
) -> None:
    """Add the options that `shard_options` reads.

    Args:
      parser: parser of a command that calls `run_shards`.
      processes: the default number of worker processes, in words.
    """
    group = parser.add_argument_group(
        "many processes and machines (docs/captioning.md)"
    )
    group.add_argument(
        "--processes",
        type=parse_count,
        metavar="N",
        help=f"number of worker processes (default: {processes})",
    )
    group.add_argument(
        "--shard",
        default="0/1",
        type=parse_part,
        metavar="I/N",
        help="do part I (from 0) of N equal parts, as one of N machines",
    )
    group.add_argument(
        "--runner",
        default=RUNNERS[0],
        choices=RUNNERS,
        help="where workers run: as processes of this machine, or on a Ray cluster",
    )


def shard_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `run_shards` from a parsed command line."""
    return {
        "processes": arguments.processes,
        "part": arguments.shard,
        "runner": arguments.runner,
    }


def parse_part(text: str) -> tuple[int, int]:
    """Return the numbers of "I/N".

    Raises:
      argparse.ArgumentTypeError: it is something else, or I is not in 0 .. N - 1.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 0/4")
    index, count = map(int, match.groups())
    if index >= count:
        raise argparse.ArgumentTypeError(
            f"{text!r}: parts are numbered from 0 to N - 1, here 0 to {count - 1}"
            if count
            else f"{text!r}: there must be at least one part"
        )
    return index, count


def parse_count(text: str) -> int:
    """Return a number of at least 1.

    Raises:
      argparse.ArgumentTypeError: it is something else.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)
