"""Evaluate a model: retrieval, captioning or visual question answering.

    blip2-jax evaluate --model runs/stage1 --task retrieval
    blip2-jax evaluate --model blip2-opt-2.7b --task captioning --data photos/
    blip2-jax evaluate --config eval/vqa_zeroshot:vqav2_val,opt2.7b

The model is the directory of a run, a converted or Hugging Face folder, or a LAVIS
file; `--config.beside.vision=FILE` and its neighbours name the weights that a LAVIS
file leaves out. Without `--data`, the evaluation sources of the run are used.

Writes a JSON record of the scores and, beside it, every example and the file that a
benchmark's server expects. Several processes share the examples.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from blip2_jax.cli.config_options import ConfigParser, read_config_option
from blip2_jax.cli.data_option import add_data_options, read_data_option
from blip2_jax.cli.options import add_cache_option, run_command
from blip2_jax.cli.processes import add_process_options, join_processes

# Options that set the configuration key of the same name.
SHORT_OPTIONS = {
    "model": ("PATH", "directory of a run, folder or file of weights, or ORG/NAME"),
    "task": ("TASK", "retrieval, captioning or vqa"),
    "out": ("FILE", "record to write; default: evaluation_TASK.json in the run"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> ConfigParser:
    """Make the parser of the command line."""
    parser = ConfigParser("evaluate", __doc__, folder="eval", default="eval/default")
    for name, (metavar, description) in SHORT_OPTIONS.items():
        parser.add_argument(f"--{name}", metavar=metavar, help=description)
    add_data_options(parser, "examples to evaluate")
    add_cache_option(parser)
    add_process_options(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print the scores; returns the exit code."""
    config = requested_config(arguments)
    join_processes(arguments)

    from blip2_jax.cli.evaluation_run import evaluate_run
    from blip2_jax.parallel import hosts
    from blip2_jax.perf.compile_cache import enable_compile_cache
    from blip2_jax.training.terminal import shorten_path

    enable_compile_cache(arguments.compile_cache)
    record, path = evaluate_run(config)
    if hosts.is_first():
        print_scores(record)
        print(f"written to {shorten_path(path)}")
    return 0


def requested_config(arguments: argparse.Namespace) -> ConfigDict:
    """Return the configuration with the values of the short options."""
    config = read_config_option(arguments).copy_and_resolve_references()
    with config.unlocked():
        for name in SHORT_OPTIONS:
            if getattr(arguments, name) is not None:
                config[name] = getattr(arguments, name)
        specs = read_data_option(arguments)
        if specs is not None:
            config.data = specs
    return config


def print_scores(record: dict[str, Any]) -> None:
    """Print the scores of a record with their confidence intervals."""
    intervals = record.get("intervals", {})
    for name, value in record["scores"].items():
        low, high = intervals.get(name, (None, None))
        interval = "" if low is None else f"  [{low:.2f}, {high:.2f}]"
        print(f"{name:>24}  {value:.2f}{interval}")
    if record["notice"]:
        print(record["notice"])


if __name__ == "__main__":
    sys.exit(main())
