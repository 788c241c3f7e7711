"""Parser, options and error handling that the commands share."""

from __future__ import annotations

import argparse
import difflib
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from blip2_jax.cli.errors import UsageError, report_error
from blip2_jax.cli.quiet import quiet_libraries

# Fields of `ExtraWeights`, repeated here because importing them takes seconds.
EXTRA_WEIGHTS = {
    "vision": "image encoder, for a LAVIS file, which has none",
    "language_model": "language model, for a LAVIS file of stage 2, which has none",
    "text_branch": "stage-1 file or BERT that gives a stage-2 model its text branch",
    "lora": "PEFT folder whose LoRA matrices are merged into a Hugging Face folder",
    "qformer_tokenizer": "directory of the Q-Former's tokenizer (BERT's)",
    "language_tokenizer": "directory of the language model's tokenizer",
    "sizes": "preset or JSON file of sizes, for files of no released model",
    "image_size": "image size other than the model's; positions are interpolated",
}

# Keys of `nn.quantized.SCHEMES`, which takes seconds to import.
QUANTIZATIONS = ("int8", "int4", "int8_matmul", "fp8_matmul")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description and shows the default of every option."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        is_flag, is_list = action.nargs == 0, isinstance(action.default, list)
        if is_flag or is_list or action.default in (None, "") or "default:" in text:
            return text
        return f"{text} (default: %(default)s)"


class CommandParser(argparse.ArgumentParser):
    """A parser whose help starts with the command's docstring.

    Option names may be written with hyphens in place of underscores.
    """

    def __init__(self, name: str, description: str | None) -> None:
        super().__init__(
            prog=f"blip2-jax {name}",
            description=description,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        self.former_names: dict[str, str] = {}
        self.add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse the options after checking their names.

        Raises:
          UsageError: an option is unknown; the message names a similar one.
        """
        words = sys.argv[1:] if args is None else list(args)
        end = words.index("--") if "--" in words else len(words)
        checked = [self._known_name(word) for word in words[:end]]
        return super().parse_known_args([*checked, *words[end:]], namespace)

    def _known_name(self, word: str) -> str:
        """Return a word of the command line; the names of options as the parser's."""
        if not word.startswith("-") or word == "-" or " " in word or is_number(word):
            return word  # a value
        given, equals, value = word.partition("=")
        if self.is_known(given):
            return word
        name = "--" + given.lstrip("-").replace("-", "_")
        name = self.former_names.get(name, name)
        if given.startswith("--") and self.is_known(name):
            return name + equals + value
        names = [option for option in self._option_string_actions if option != "-h"]
        raise UsageError(f"unknown option {given}{suggest(name, names)}")

    def is_known(self, name: str) -> bool:
        """Return True if the parser has an option of this name."""
        return name in self._option_string_actions

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
      The exit code: that of `run`, or that of `report_error` after an error.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments = parser.parse_args(argv)
        quiet_libraries()
        _escape_unprintable()
        code = run(arguments)
        sys.stdout.flush()  # a closed pipe is an error here, not at exit
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in argv:
            raise
        return report_error(error)
    return code


def _escape_unprintable() -> None:
    """Print characters that the encoding of stdout lacks as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: similar names, or all."""
    names = list(known)
    similar = difflib.get_close_matches(name, names, n=3)
    if similar:
        return f"; did you mean {' or '.join(map(repr, similar))}?"
    return f"; there are {', '.join(names)}" if names else ""


def is_number(text: str) -> bool:
    """Return True if a word is a number, e.g. a negative value of an option."""
    try:
        float(text)
    except ValueError:
        return False
    return True


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


def add_load_options(parser: argparse.ArgumentParser, default: str = "") -> None:
    """Add the options that `load_options` reads: `--model` and how it is opened.

    Args:
      parser: the parser.
      default: model that is opened without `--model`; "": it must be given.
    """
    parser.add_argument(
        "--model",
        default=default,
        required=not default,
        metavar="PATH",
        help="directory of a run, converted or Hugging Face folder, LAVIS file, "
        "ORG/NAME of the Hugging Face hub, or shapes, a model of this package",
    )
    add_model_options(parser)
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="dtype of matmul inputs; default: as in training",
    )
    parser.add_argument(
        "--quantize",
        default="",
        choices=QUANTIZATIONS,
        help="store the kernels of the frozen towers in 8 or 4 bits (docs/using.md)",
    )


def load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `blip2_jax.load` from a parsed command line."""
    return {
        "path": arguments.model,
        "which": arguments.which,
        "precision": arguments.precision,
        "quantize": arguments.quantize,
        **extra_weights(arguments),
    }


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
        help='checkpoint of a run: "best", "last" or a step',
    )


def add_cache_option(parser: argparse.ArgumentParser) -> None:
    """Add `--compile_cache`, the argument of `enable_compile_cache`."""
    parser.add_argument(
        "--compile_cache",
        metavar="DIR",
        help='directory that keeps compiled programs for later runs, or "off"; '
        "default: JAX_COMPILATION_CACHE_DIR or the user's cache directory",
    )


def cache_option(arguments: argparse.Namespace) -> list[str]:
    """Return `--compile_cache` as given, for a command that this one starts."""
    directory = arguments.compile_cache
    return [] if directory is None else [f"--compile_cache={directory}"]


def parse_checkpoint(text: str) -> str | int:
    """Return a checkpoint's step as a number, and "best" and "last" as they are.

    Raises:
      argparse.ArgumentTypeError: it is another word.
    """
    if text.isdigit():
        return int(text)
    if text not in ("best", "last"):
        raise argparse.ArgumentTypeError(f"{text!r} is not best, last or a step")
    return text


def extra_weights(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `ExtraWeights` from a parsed command line."""
    return {name: getattr(arguments, name) for name in EXTRA_WEIGHTS}
