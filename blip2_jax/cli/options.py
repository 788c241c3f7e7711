"""What the tools under `launch/` share: options that open a model, errors in a line."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Callable, Iterable
from typing import Any

# The fields of `opening.ExtraWeights`, which is not imported: `--help` shall be quick.
BESIDE = {
    "vision": "image encoder, where the model's file has none (LAVIS)",
    "language_model": "language model, where the file has none (LAVIS, stage 2)",
    "text_branch": "stage-1 file or BERT whose text branch a stage-2 model takes",
    "qformer_tokenizer": "directory of the Q-Former's tokenizer (BERT's)",
    "language_tokenizer": "directory of the language model's tokenizer",
    "sizes": "preset or JSON file of sizes, for files of no released model",
    "image_size": "other than the model's own; positions are interpolated",
}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options for what a model's path does not say; `given_beside` reads them."""
    for name, what in BESIDE.items():
        if name == "image_size":
            parser.add_argument(f"--{name}", type=int, metavar="PIXELS", help=what)
        else:
            parser.add_argument(f"--{name}", default="", metavar="PATH", help=what)
    parser.add_argument(
        "--which",
        default="best",
        type=checkpoint,
        help='a run\'s "best", "last" or a step',
    )
    parser.add_argument("--debug", action="store_true", help="show where an error is")


def checkpoint(which: str) -> str | int:
    """A step as a number; other names as they are."""
    return int(which) if which.isdigit() else which


def given_beside(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `ExtraWeights`, as given or at their defaults."""
    return {name: getattr(arguments, name) for name in BESIDE}


def configuration(file: str) -> Any:
    """What a configuration file makes: for commands that read one without flags.

    Args:
      file: its path; what stands behind a ":" is for its `get_config`.
    """
    path, _, words = file.partition(":")
    get_config = runpy.run_path(path)["get_config"]
    return get_config(words) if words else get_config()


def print_lines(
    run: Callable[[argparse.Namespace], Iterable[str]], arguments: argparse.Namespace
) -> int:
    """Print what a tool says; what the user can mend becomes one sentence.

    Returns:
      The exit code.
    """
    try:
        for line in run(arguments):
            print(line, flush=True)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if arguments.debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0
