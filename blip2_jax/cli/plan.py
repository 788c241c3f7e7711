"""Estimate memory and time of a training step on hardware that need not be present.

    blip2-jax plan --config stage1_vitg --config.batch_size=1792 --topology v5e:16x16
    blip2-jax plan --config stage2_opt2_7b --topology v5p:4x4x4 --sweep batch,remat

Compiles the training step for the topology and prints memory by kind, FLOPs, traffic
between devices and time. `--sweep` compares variants of the configuration and
recommends the best that fits; if no batch size fits, it tries smaller ones.

The exit code is 0 if a variant fits and 3 if none does.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from blip2_jax.cli.bert_option import add_bert_option, set_bert_option
from blip2_jax.cli.config_options import ConfigParser, read_config_option
from blip2_jax.cli.errors import UsageError, reading_option
from blip2_jax.cli.options import require, run_command
from blip2_jax.cli.vision_option import add_vision_options, set_vision_option

NOTHING_FITS = 3  # exit code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> ConfigParser:
    """Make the parser of the command line."""
    parser = ConfigParser("plan", __doc__)
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="a TPU slice by its chips, such as v4:2x2x1, v5e:16x16, v5p:4x4x4 or "
        "v6e:2x4 (needs `pip install 'jax[tpu]'`, but no TPU), or cpu:N",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="share of the peak FLOP/s that matmuls are assumed to reach",
    )
    parser.add_argument(
        "--sweep", default="", metavar="AXES", help="try a grid, e.g. batch,remat,mesh"
    )
    parser.add_argument(
        "--out", default="", metavar="FILE", help="write the numbers as JSON too"
    )
    parser.former_names["--json"] = "--out"
    add_vision_options(parser)
    add_bert_option(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Plan and print; returns the exit code."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # compiling for a topology needs no device
    require(arguments, config="stage1_vitg", topology="v5e:16x16")
    if not 0 < arguments.mfu <= 1:
        raise UsageError(f"--mfu is {arguments.mfu}; expected a share in (0, 1]")
    config = read_config_option(arguments)
    set_vision_option(arguments, config)
    set_bert_option(arguments, config)

    from blip2_jax.planning.plan import Plan, make_plan
    from blip2_jax.planning.report import describe, report, verdict
    from blip2_jax.planning.sweep import parse_axes, recommendation, sweep
    from blip2_jax.planning.topology import open_topology

    with reading_option("--sweep: "):
        axes = parse_axes(arguments.sweep) if arguments.sweep else ()
    with reading_option("--topology: "):
        topology = open_topology(arguments.topology)
    if axes:

        def plan_variant(variant: ConfigDict) -> Plan:
            plan = make_plan(variant, topology, arguments.mfu, only_arguments=True)
            print(f"{describe(plan)}: {verdict(plan)}", flush=True)
            return plan

        plans = sweep(config, len(topology.devices), axes, plan_variant)
        print(f"\n{recommendation(plans, config.batch_size, axes)}")
    else:
        plans = [make_plan(config, topology, arguments.mfu)]
        print(report(plans[0]))
        if plans[0].fits is False:
            print("\n--sweep batch,remat,mesh looks for the nearest that fits")
    if arguments.out:
        numbers = [plan.to_plain() for plan in plans]
        pathlib.Path(arguments.out).write_text(json.dumps(numbers, indent=1) + "\n")
    return NOTHING_FITS if all(plan.fits is False for plan in plans) else 0


if __name__ == "__main__":
    sys.exit(main())
