r"""Write a data set as ArrayRecord files or tars, with its images.

    blip2-jax prepare --data my_photos --out prepared/my_photos --resize 384
    blip2-jax prepare --data laion/ --out prepared/laion --format tars --shard 0/4
    blip2-jax train --config stage1_vitl --data prepared/my_photos --workdir runs/photos

Any layout that `--data` knows is read. Images keep their bytes; with --resize, larger
ones become JPEGs. Broken images, images without a caption and what the options below
exclude are dropped and listed in `dropped.jsonl`; `manifest.json` counts what was kept.

A run that was stopped is continued by the same command. The files depend on the data
and the options only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from blip2_jax.cli.data_option import add_data_options, read_data_option
from blip2_jax.cli.errors import UsageError, reading_option
from blip2_jax.cli.options import CommandParser, run_command
from blip2_jax.cli.shard_options import add_shard_options, shard_options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("prepare", __doc__)
    add = parser.add_argument
    parser.former_names = {"--output": "--out"}
    add("--out", required=True, metavar="DIR", help="directory of the files")
    add(
        "--format",
        default="arrayrecord",
        choices=("arrayrecord", "tars"),
        help="format of the files",
    )
    add(
        "--shard_size",
        type=int,
        default=10_000,
        metavar="N",
        help="records of the data in each file, dropped ones included",
    )
    add(
        "--resize",
        type=int,
        default=0,
        metavar="N",
        help="shrink larger images to N pixels at the shorter side (default: keep all)",
    )
    add(
        "--quality",
        type=int,
        default=95,
        metavar="Q",
        help="quality of the JPEGs of shrunk images, 1 to 100",
    )
    add(
        "--min_size",
        type=int,
        default=0,
        metavar="N",
        help="drop images with less than N pixels at the shorter side",
    )
    add(
        "--max_aspect",
        type=float,
        default=0.0,
        metavar="A",
        help="drop images that are more than A times as long as wide, or as wide as "
        "long (default: keep all)",
    )
    add(
        "--drop_duplicates",
        action="store_true",
        help="drop images with the same bytes as an earlier one in the same file",
    )
    add_data_options(parser, "data to write")
    add_shard_options(parser, "one for each core")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write the files and print what was kept; returns the exit code."""
    from blip2_jax.data.prepare.job import PrepareJob, PrepareOptions
    from blip2_jax.data.prepare.manifest import MANIFEST, write_manifest
    from blip2_jax.parallel.paths import as_path
    from blip2_jax.parallel.shard_jobs import run_shards

    with reading_option("--"):
        options = PrepareOptions(
            arguments.format,
            arguments.shard_size,
            arguments.resize,
            arguments.quality,
            arguments.min_size,
            arguments.max_aspect,
            arguments.drop_duplicates,
        )
    specs = read_data_option(arguments)
    if not specs:
        raise UsageError("--data is missing: the data to write")
    if len(specs) > 1:
        raise UsageError(
            f"--data names {len(specs)} sources; prepare one after another, so that "
            "each keeps a weight of its own"
        )
    job = PrepareJob(specs[0], as_path(arguments.out), options)
    run_shards(job, **shard_options(arguments))
    manifest = write_manifest(job)
    if manifest is None:
        print(f"{job.output}: the other parts are not finished; no {MANIFEST} yet")
    else:
        print(f"{job.output}: {_summary(manifest)}")
    return 0


def _summary(manifest: Mapping[str, Any]) -> str:
    """Return what was kept and dropped in one line."""
    parts = [f"{manifest['kept']} images ({manifest['resized']} resized)"]
    for name in ("captions", "questions"):
        parts += [f"{manifest[name]} {name}"] if manifest[name] else []
    parts.append(f"{len(manifest['shards'])} files")
    dropped = ", ".join(f"{n} {cause}" for cause, n in manifest["dropped"].items())
    return ", ".join(parts) + (f"; dropped: {dropped}" if dropped else "")


if __name__ == "__main__":
    sys.exit(main())
