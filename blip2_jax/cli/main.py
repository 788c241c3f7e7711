"""The console command `blip2-jax`: choose a command and run it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import blip2_jax
from blip2_jax.cli.errors import UsageError, report_error
from blip2_jax.cli.options import suggest

# Name of the module in this package, and what the command does.
COMMANDS = {
    "train": "pre-train or fine-tune a model, or continue a run",
    "evaluate": "evaluate retrieval, captioning or visual question answering",
    "caption": "caption images, answer questions, score texts",
    "search": "find the images of a folder that fit a text",
    "convert": "convert weights between this package, Hugging Face and LAVIS",
    "prepare": "write a data set as ArrayRecord files or tars, images resized",
    "features": "compute the features of a data set's images with an image encoder",
    "cache_features": "store an image encoder's outputs, to train without the images",
    "capfilt": "caption web images, rank all captions and keep the best",
    "plan": "estimate memory and time of a training step on other hardware",
    "report": "compare evaluations on a page",
    "demo": "train both stages on a small generated world and report",
    "tables": "reproduce the paper's tables on the generated world",
    "train_vocabulary": "train a byte-level BPE vocabulary on captions or questions",
    "compare_seeds": "compare runs that were repeated with other seeds",
    "majority_baseline": "score the most common training answers",
    "pack_tower": "write a tower of a run to a file in half precision",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    Args:
      argv: arguments without the program's name; None: those of this process.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    name, arguments = (argv[0], argv[1:]) if argv else ("--help", [])
    if name == "help" and arguments:
        name, arguments = arguments[0], ["--help"]
    if name in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if name == "--version":
        print(f"blip2-jax {blip2_jax.__version__}")
        return 0
    if name not in COMMANDS:
        hint = suggest(name, COMMANDS)
        return report_error(UsageError(f"there is no command {name!r}{hint}"))
    module = importlib.import_module(f"blip2_jax.cli.{name}")
    code: int = module.main(arguments)
    return code


def help_text() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: blip2-jax COMMAND [OPTIONS]",
            "",
            "BLIP-2 in JAX: pre-train, fine-tune, evaluate, caption, convert.",
            "",
            "commands:",
            *lines,
            "",
            "`blip2-jax COMMAND --help` describes the options of a command;",
            "`blip2-jax --version` prints the version.",
            "",
            "The exit code is 0 after success, 1 after a failure, 2 for wrong options.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
