r"""Compute a frozen image encoder's outputs once; training reads them for images.

    blip2-jax cache_features --config stage1_vitl --data photos --out cache/photos
    blip2-jax train --config stage1_vitl --data cache/photos --workdir runs/stage1
    blip2-jax cache_features --model eva_vit_g.pth --data photos --out cache/photos \
        --dtype int8 --dry_run

With --config, encoder, precision, data and augmentation are those of the experiment;
--data and --model replace them. Without, --data and --model must be given. The size
and about the time are printed first, and the command ends if the disk has not the
space. --dry_run only prints them.

A command that was stopped is continued by the same command; finished shards are kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from blip2_jax.cli.config_options import ConfigParser, read_config_option
from blip2_jax.cli.data_option import add_data_options, read_data_option
from blip2_jax.cli.errors import UsageError, reading_option
from blip2_jax.cli.options import add_cache_option, run_command
from blip2_jax.cli.shard_options import add_shard_options, shard_options
from blip2_jax.cli.vision_option import add_vision_options, set_vision_option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> ConfigParser:
    """Make the parser of the command line."""
    parser = ConfigParser("cache_features", __doc__)
    parser.former_names = {"--encoder": "--model", "--output": "--out"}
    add = parser.add_argument
    add("--out", metavar="DIR", help="directory of the cache")
    add(
        "--model",
        default="",
        metavar="PATH",
        help="image encoder: a file or folder of EVA-CLIP, CLIP, SigLIP or DINOv2, a "
        'run, a BLIP-2 model, or "shapes:vision"',
    )
    add(
        "--sizes",
        default="",
        metavar="NAME",
        help="preset or JSON file of sizes, for an encoder that does not say its own",
    )
    add(
        "--precision",
        choices=("float32", "bfloat16"),
        help="dtype of matmul inputs (default: bfloat16, or the configuration's)",
    )
    add(
        "--dtype",
        default="bf16",
        choices=("bf16", "int8"),
        help="storage of the features; int8 has a scale for each token",
    )
    add(
        "--crops",
        type=int,
        default=0,
        metavar="N",
        help="random crops and flips of each image; 0 or 1: the whole image, resized "
        "as in evaluation",
    )
    add("--batch_size", type=int, default=32, metavar="N", help="images per batch")
    add(
        "--records_per_shard",
        type=int,
        default=0,
        metavar="N",
        help="images of a file (default: about a gigabyte)",
    )
    add(
        "--dry_run",
        action="store_true",
        help="print size and time, and write nothing",
    )
    add_data_options(parser, "images to encode")
    add_vision_options(parser)
    add_shard_options(parser)
    add_cache_option(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write the cache, or say how large it will be; returns the exit code."""
    from blip2_jax.inference.cache_estimate import check_space, inspect
    from blip2_jax.inference.cache_manifest import training_specs, write_manifest
    from blip2_jax.inference.feature_cache import FeatureCacheJob
    from blip2_jax.parallel.paths import as_path
    from blip2_jax.parallel.shard_jobs import run_shards
    from blip2_jax.parallel.worker_places import worker_places

    if not arguments.out:
        raise UsageError("--out is missing: the directory of the cache")
    specs, recipe, options = _requested(arguments)
    job = FeatureCacheJob(specs, recipe, options, as_path(arguments.out))
    is_alone = arguments.runner == "processes" and (
        len(worker_places(arguments.processes, job.uses_model)) == 1
    )
    estimate = inspect(job, in_this_process=is_alone)
    print(f"{job.output}: {estimate}")
    check_space(job)
    if arguments.dry_run:
        return 0
    run_shards(job, **shard_options(arguments))
    manifest = write_manifest(job)
    if manifest is None:
        print(f"{job.output}: this part is finished, but shards of others are missing")
        return 0
    _print_result(manifest, training_specs(job, specs))
    return 0


def _requested(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Return source specs, encoder and options of a command line."""
    from blip2_jax.data.data_config import data_config
    from blip2_jax.data.images import ImageConfig
    from blip2_jax.inference.cache_options import CacheOptions, EncoderRecipe
    from blip2_jax.training.train_config import to_plain

    specs: Any = read_data_option(arguments, default_split="train")
    image, seed = ImageConfig(), 0
    if arguments.config is None:
        _check_complete(arguments, specs)
        precision = arguments.precision or "bfloat16"
        recipe = EncoderRecipe(None, arguments.model, arguments.sizes, precision)
    else:
        if arguments.sizes:
            raise UsageError("--sizes goes with --model; --config has its own sizes")
        config = read_config_option(arguments)
        set_vision_option(arguments, config)
        with config.unlocked():
            if arguments.model:
                config.frozen_sources.vision = arguments.model
            config.precision = arguments.precision or config.precision
        recipe = EncoderRecipe(to_plain(config))
        data = data_config(config.data)
        image, seed = data.image, config.seed
        specs = data.train if specs is None else specs
        if not specs:
            raise UsageError("--data is missing, and the configuration names no data")
    with reading_option("--"):
        options = CacheOptions(
            arguments.dtype,
            arguments.crops,
            image,
            seed,
            arguments.batch_size,
            arguments.records_per_shard,
        )
    return specs, recipe, options


def _check_complete(arguments: argparse.Namespace, specs: Any) -> None:
    """Check that a command line without a configuration says what to encode.

    Raises:
      UsageError: it does not.
    """
    if arguments.overrides:
        raise UsageError(f"{arguments.overrides[0]} needs --config")
    if arguments.vision or arguments.image_size:
        raise UsageError("--vision and --image_size go with --config, as in training")
    if not arguments.model:
        raise UsageError("name the image encoder: --model PATH, or --config NAME")
    if not specs:
        raise UsageError("--data is missing: the images to encode")


def _print_result(manifest: Any, specs: Sequence[Mapping[str, Any]]) -> None:
    """Print what was written and how to train on it."""
    import json

    origin, broken = manifest.origin, sum(manifest.broken.values())
    print(
        f"{origin.cache}: {manifest.records:,} records, {origin.num_tokens} x "
        f"{origin.width} {manifest.dtype}, {sum(manifest.shard_bytes):,} bytes"
    )
    if broken:
        causes = ", ".join(f"{n} {cause}" for cause, n in manifest.broken.items())
        print(f"broken, listed in broken.jsonl: {causes}")
    data = origin.cache if len(specs) == 1 else f"'{json.dumps(specs)}'"
    print(f"train with --data {data}")


if __name__ == "__main__":
    sys.exit(main())
