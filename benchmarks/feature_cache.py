"""Time stage 1 on images and on cached features: `python -m benchmarks.feature_cache`.

Writes JPEGs, caches the outputs of a frozen ViT for them in bf16 and in int8, and then
runs steps of stage 1 on the images and on both caches in turn, each from its files to
the updated parameters. `--size quarter` has the widths of ViT-g and the Q-Former
divided by four and their depths by six, so that the encoder's share of the step is
that of the real model; `--size real` is ViT-g with the full Q-Former, for an
accelerator; `--size tiny` shows that the command works.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from blip2_jax.data.data_config import data_config
from blip2_jax.data.sources.registry import build_source
from blip2_jax.inference.cache_estimate import inspect
from blip2_jax.inference.cache_manifest import relative_error, write_manifest
from blip2_jax.inference.cache_options import CacheOptions, EncoderRecipe
from blip2_jax.inference.feature_cache import FeatureCacheJob
from blip2_jax.parallel import sharding
from blip2_jax.parallel.shard_jobs import run_shards
from blip2_jax.perf import flops
from blip2_jax.training.setup import TrainingRun, set_up
from blip2_jax.training.tasks import model_config
from blip2_jax.training.train_config import default_config, to_plain

SIZES: dict[str, dict[str, Any]] = {
    "real": {},
    "quarter": {
        "vision": {"width": 352, "depth": 7, "heads": 4, "mlp_dim": 1536},
        "qformer": {"width": 192, "depth": 2, "heads": 3, "mlp_dim": 768},
    },
    "tiny": {
        "vision": {"width": 32, "depth": 1, "heads": 2, "mlp_dim": 64},
        "qformer": {"width": 32, "depth": 2, "heads": 2, "mlp_dim": 64},
    },
}
DTYPES = ("bf16", "int8")
SIDE = 500  # pixels of the JPEGs
READS = 50  # timed reads of features


def main() -> None:
    """Print the tables."""
    options = arguments()
    print(
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}; size {options.size}, "
        f"batch {options.batch_size}, {options.precision}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        measure(options, pathlib.Path(folder))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="quarter")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each")
    parser.add_argument("--workers", type=int, default=0, help="config.data.workers")
    parser.add_argument("--precision", default="float32")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: pathlib.Path) -> None:
    """Write images and caches, and time the steps."""
    config = configuration(options, write_images(folder / "images", options.images))
    sizes = model_config(config.model)
    encoder = flops.image_encoder(sizes)[0] / 1e9
    step = flops.training_step(flops.stage1(sizes, config.data.max_text_length)) / 1e9
    print(f"{step:.1f} GF an image and step, {encoder:.1f} of them in the encoder\n")
    print(
        "| cache | estimated s | written in s | bytes an image | rms error | read ms |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    runs = {"images": set_up(config, folder / "run_images")}
    for dtype in DTYPES:
        write_cache(config, folder / dtype, dtype)
        cached = ConfigDict(config.to_dict())
        spec = {"kind": "cached_features", "path": str(folder / dtype)}
        cached.data.train = (spec,)
        runs[dtype] = set_up(cached, folder / f"run_{dtype}")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.steps + 1):
        for name, run in runs.items():
            taken = take_step(run)
            if turn:  # the first compiles
                times[name].append(taken)
    print("\n| trained on | s a step | images/s | speed-up |\n|---|---:|---:|---:|")
    base = statistics.median(times["images"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        rate = options.batch_size / median
        print(f"| {name} | {median:.3f} | {rate:.2f} | {base / median:.2f} |")
    for run in runs.values():
        run.batches.close()


def write_images(folder: pathlib.Path, count: int) -> dict[str, Any]:
    """Write JPEGs of smooth noise with captions; returns the spec of the source."""
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        noise = rng.integers(0, 256, (12, 16, 3), np.uint8)
        image = Image.fromarray(noise).resize((SIDE, SIDE * 3 // 4))
        image.save(folder / f"{number:06}.jpg", quality=90)
        rows.append({"image": f"{number:06}.jpg", "caption": "a red circle"})
    (folder / "data.json").write_text(json.dumps(rows))
    path = str(folder / "data.json")
    return {"kind": "annotations", "path": path, "images": str(folder)}


def configuration(options: argparse.Namespace, spec: dict[str, Any]) -> ConfigDict:
    """Return the configuration of the runs on images."""
    config = default_config("stage1").unlock()
    config.model.overrides = ConfigDict(SIZES[options.size])
    config.precision, config.batch_size = options.precision, options.batch_size
    config.frozen_sources.vision = "random"
    config.data.train, config.data.workers = (spec,), options.workers
    config.data.tokenizer.qformer = "shapes:bert"
    return config


def write_cache(config: ConfigDict, folder: pathlib.Path, dtype: Any) -> None:
    """Write a cache and print its row of the table."""
    recipe = EncoderRecipe(to_plain(config))
    image = dataclasses.replace(data_config(config.data).image, augment=False)
    options = CacheOptions(dtype, image=image, batch_size=config.batch_size)
    job = FeatureCacheJob(config.data.train, recipe, options, folder)
    estimate = inspect(job)
    start = time.perf_counter()
    reports = run_shards(job)
    seconds = time.perf_counter() - start
    write_manifest(job)
    source = build_source({"kind": "cached_features", "path": str(folder)})
    read = statistics.median(read_times(source))
    print(
        f"| {dtype} | {estimate.seconds:.1f} | {seconds:.1f} "
        f"| {estimate.record_bytes:,} | {relative_error(reports):.2%} "
        f"| {1000 * read:.2f} |"
    )


def read_times(source: Any) -> Iterator[float]:
    """Yield the seconds that reading an image's features takes."""
    for number in range(READS):
        start = time.perf_counter()
        source.load_features(number % len(source))
        yield time.perf_counter() - start


def take_step(run: TrainingRun) -> float:
    """Read a batch and take a step; returns the seconds."""
    start = time.perf_counter()
    batch = sharding.make_global_batch(next(run.batches), run.mesh)
    run.state, metrics = run.train_step(run.state, run.frozen, batch, None)
    float(metrics["loss"])
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
