"""Plan: `python launch/plan.py --config configs/X.py [--config.a.b=c] --topology NAME`.

Compiles the training step of a configuration for hardware that need not be there and
prints memory by kind, matrix products, traffic between devices and time. NAME is a TPU
slice by chips (v4:2x2x1, v5e:16x16, v5p:4x4x4, v6e:2x4; needs `pip install 'jax[tpu]'`,
no TPU) or cpu:N. `--mfu` is the share of the peak that matrix products are taken to
reach. `--sweep batch,remat,mesh` tries a small grid and recommends the best that fits;
where batches are too large, smaller ones until one fits. `--json FILE` writes the same
numbers. The exit code is 0 when something fits, 2 when nothing does, 1 after an error.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from blip2_jax.cli import train


def define_flags(argv: list[str]) -> flags.FlagValues:
    """The command line's flags; those of configurations are as in training."""
    own = train.define_flags(argv)
    flags.DEFINE_string("topology", None, "What to plan for.", flag_values=own)
    flags.DEFINE_float("mfu", 0.4, "Share of the peak.", flag_values=own)
    flags.DEFINE_string("sweep", "", "Of batch,remat,mesh.", flag_values=own)
    flags.DEFINE_string("json", "", "Write the numbers here.", flag_values=own)
    return own


def main(argv: list[str]) -> int:
    """Parse and plan; what the user can mend becomes one sentence."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # what is planned for is not what plans
    try:
        given = define_flags(argv)
        parse(given, argv)
        return run(given)
    except train.USERS_ERRORS as error:
        if "--debug" in argv:
            raise
        print(f"error: {train.sentence(error, of_config(argv))}", file=sys.stderr)
        return 1


def of_config(argv: list[str]) -> list[str]:
    """The part of a command line that names and changes the configuration."""
    pairs = zip(argv, ["", *argv[:-1]], strict=True)
    return [
        argv[0],
        *(
            item
            for item, before in pairs
            if item.startswith("--config") or before == "--config"
        ),
    ]


def parse(given: flags.FlagValues, argv: list[str]) -> None:
    """Read the command line.

    Raises:
      flags.Error, LookupError, AttributeError, ...: from flags and configuration.
    """
    examples = {"config": "configs/stage1_vitg.py", "topology": "v5e:16x16"}
    train.parse_required(given, argv, **examples)
    if not 0 < given.mfu <= 1:
        raise flags.Error(f"--mfu is {given.mfu}; it is a share, above 0 and up to 1")


def run(given: flags.FlagValues) -> int:
    """Do what the flags say; returns the exit code."""
    from blip2_jax.planning.plan import Plan, make_plan
    from blip2_jax.planning.report import describe, report, verdict
    from blip2_jax.planning.sweep import parse_axes, recommendation, sweep
    from blip2_jax.planning.topology import open_topology

    axes = parse_axes(given.sweep) if given.sweep else ()
    topology = open_topology(given.topology)
    if axes:

        def planned(config: ConfigDict) -> Plan:
            plan = make_plan(config, topology, given.mfu, only_arguments=True)
            print(f"{describe(plan)}: {verdict(plan)}", flush=True)
            return plan

        plans = sweep(given.config, len(topology.devices), axes, planned)
        print(f"\n{recommendation(plans, given.config.batch_size, axes)}")
    else:
        plans = [make_plan(given.config, topology, given.mfu)]
        print(report(plans[0]))
        if plans[0].fits is False:
            print("\n--sweep batch,remat,mesh looks for the nearest that fits")
    if given.json:
        plain = [plan.to_plain() for plan in plans]
        pathlib.Path(given.json).write_text(json.dumps(plain, indent=1) + "\n")
    return 2 if all(plan.fits is False for plan in plans) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
