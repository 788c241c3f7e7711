"""Options, error messages and paths that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import flags

from blip2_jax.cli.processes import abandon_other_processes

# Errors that the user can correct: their message is printed without a traceback.
EXPECTED_ERRORS = (
    flags.Error,
    ValueError,
    TypeError,
    OSError,
    LookupError,
    AttributeError,
    ImportError,
    RuntimeError,
)

# Fields of `ExtraWeights`, repeated here because importing them takes seconds.
EXTRA_WEIGHTS = {
    "vision": "image encoder, for a LAVIS file, which has none",
    "language_model": "language model, for a LAVIS file of stage 2, which has none",
    "text_branch": "stage-1 file or BERT that gives a stage-2 model its text branch",
    "qformer_tokenizer": "directory of the Q-Former's tokenizer (BERT's)",
    "language_tokenizer": "directory of the language model's tokenizer",
    "sizes": "preset or JSON file of sizes, for files of no released model",
    "image_size": "image size other than the model's; positions are interpolated",
}


class UsageError(ValueError):
    """A command line that cannot be run; the message is one sentence for the user."""


class CommandParser(argparse.ArgumentParser):
    """A parser whose help starts with the command's docstring."""

    def __init__(self, name: str, description: str | None) -> None:
        super().__init__(
            prog=f"blip2-jax {name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )

    def error(self, message: str) -> NoReturn:
        """Raise an error of the command line, so that all errors look alike.

        Raises:
          UsageError: always.
        """
        raise UsageError(message)


def run_command(
    parser: CommandParser,
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
) -> int:
    """Parse a command line and run the command.

    Args:
      parser: parser of the command.
      run: function that does the work and returns the exit code.
      argv: arguments without the program's name; None: those of this process.

    Returns:
      The exit code: 1 after an expected error, which is printed as one line.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return run(parser.parse_args(argv))
    except EXPECTED_ERRORS as error:
        if "--debug" in argv:
            raise
        print(f"error: {describe_error(error)}", file=sys.stderr, flush=True)
        abandon_other_processes()
        return 1


def describe_error(error: Exception) -> str:
    """Return an error's message on one line."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = " ".join(str(message).split())
    if isinstance(error, AttributeError | LookupError | TypeError) and (
        not isinstance(error, LookupError) or " " not in text
    ):
        return f"{type(error).__name__}: {text} (--debug shows the traceback)"
    return text


def require(arguments: argparse.Namespace, **examples: str) -> None:
    """Check that options were given.

    Args:
      arguments: parsed command line.
      examples: an example value for each option that must be given.

    Raises:
      UsageError: an option is missing.
    """
    for name, example in examples.items():
        if getattr(arguments, name) in (None, ""):
            raise UsageError(f"--{name} is missing, e.g. --{name} {example}")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that complete a model's path: `ExtraWeights` and `--which`."""
    for name, description in EXTRA_WEIGHTS.items():
        if name == "image_size":
            parser.add_argument(
                f"--{name}", type=int, metavar="PIXELS", help=description
            )
        else:
            parser.add_argument(
                f"--{name}", default="", metavar="PATH", help=description
            )
    parser.add_argument(
        "--which",
        default="best",
        type=parse_checkpoint,
        metavar="CHECKPOINT",
        help='checkpoint of a run: "best" (default), "last" or a step',
    )


def parse_checkpoint(text: str) -> str | int:
    """Return a checkpoint's step as a number, and "best" and "last" as they are."""
    return int(text) if text.isdigit() else text


def extra_weights(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `ExtraWeights` from a parsed command line."""
    return {name: getattr(arguments, name) for name in EXTRA_WEIGHTS}
