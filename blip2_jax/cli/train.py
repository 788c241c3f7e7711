r"""Pre-train or fine-tune a model, or continue a run that was stopped.

    blip2-jax train --config shapes_stage1 --workdir runs/shapes_stage1
    blip2-jax train --config configs/stage1_vitg.py --workdir runs/stage1 \
        --config.batch_size=1024 --config.optimizer.learning_rate=5e-5
    blip2-jax train --config stage1_vitl --data photos/ --workdir runs/photos
    blip2-jax train --config stage1_vitg --vision facebook/dinov2-large \
        --image_size 224 --workdir runs/dinov2

The same command continues a run from its last checkpoint; with --restart it begins anew
and keeps the former run in DIR/earlier. The exit code is 0 when the run is complete,
128 + the signal when it saved a checkpoint and stopped (143: SIGTERM), and 1 after an
error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from blip2_jax.cli.bert_option import add_bert_option, set_bert_option
from blip2_jax.cli.config_options import ConfigParser, read_config_option
from blip2_jax.cli.data_option import add_data_options, read_data_option
from blip2_jax.cli.errors import UsageError
from blip2_jax.cli.options import add_cache_option, require, run_command
from blip2_jax.cli.processes import add_process_options, join_processes
from blip2_jax.cli.vision_option import add_vision_options, set_vision_option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> ConfigParser:
    """Make the parser of the command line."""
    parser = ConfigParser("train", __doc__)
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="directory of the run: checkpoints, metrics, configuration",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="move a run that DIR holds to DIR/earlier/N and begin anew",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print and draw five samples of the data; train nothing",
    )
    add_data_options(parser, "training data in place of the configuration's")
    add_vision_options(parser)
    add_bert_option(parser)
    add_cache_option(parser)
    add_process_options(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Train, or show the data; returns the exit code."""
    require(arguments, config="stage1_vitg")
    if not arguments.workdir and not arguments.dry_run:
        raise UsageError("--workdir is missing: the directory of the run")
    config = requested_config(arguments)
    if arguments.dry_run:
        from blip2_jax.cli.dry_run import dry_run

        dry_run(config)
        return 0
    from blip2_jax.evaluation.evaluators import make_evaluator
    from blip2_jax.parallel.host_memory import disable_async_dispatch
    from blip2_jax.perf.compile_cache import enable_compile_cache
    from blip2_jax.training.loop import train

    disable_async_dispatch()
    join_processes(arguments)
    enable_compile_cache(arguments.compile_cache, config.compilation_cache)
    return train(config, arguments.workdir, make_evaluator, restart=arguments.restart)


def requested_config(arguments: argparse.Namespace) -> ConfigDict:
    """Return the configuration, with the data and the models of the options."""
    from blip2_jax.training.new_tokens import fit_tables

    config = read_config_option(arguments)
    set_vision_option(arguments, config)
    set_bert_option(arguments, config)
    fit_tables(config)
    specs = read_data_option(arguments, default_split="train")
    if specs is not None:
        with config.unlocked():
            config.data.train = specs
    return config


if __name__ == "__main__":
    sys.exit(main())
