"""Measure the gain of length buckets: `python -m benchmarks.length_buckets`.

Looks at the batches of Flickr8k's training photos as a run of stage 1 would draw them,
one of five captions a photo, and says for each batch size how far texts are padded and
what that saves of the step's FLOPs. With `--time` it also runs steps of a Q-Former on
precomputed features, each batch padded to its bucket and to the full length, in turn:
`--size real` is the paper's Q-Former (12 blocks of 768, 257 x 1408 features, fp32; 8 GB
at a batch of 8), `--size tiny` shows that the command works.

BLIP2_JAX_TESTDATA names the folder with `data/flickr8k` and
`tokenizers/bert-base-uncased`, unless `--tars` and `--tokenizer` do.
"""

from __future__ import annotations

import argparse
import collections
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from blip2_jax.data.data_config import DataConfig, TokenizerConfig
from blip2_jax.data.length_buckets import LengthBuckets
from blip2_jax.data.rows import TrainingRows
from blip2_jax.models import presets
from blip2_jax.parallel import sharding
from blip2_jax.perf import flops
from blip2_jax.training import initial_params
from blip2_jax.training.optimizer import make_optimizer
from blip2_jax.training.schedule import make_schedule
from blip2_jax.training.state import create_state
from blip2_jax.training.step import make_train_step
from blip2_jax.training.tasks import make_task
from blip2_jax.training.train_config import default_config

SIZES: dict[str, dict[str, Any]] = {
    "real": {"vision": {"kind": "features", "num_tokens": 257, "width": 1408}},
    "tiny": {
        "vision": {"kind": "features", "num_tokens": 17, "width": 32},
        "qformer": {"width": 32, "depth": 2, "heads": 2, "mlp_dim": 64},
    },
}
Step = Callable[[dict[str, np.ndarray]], float]


def main() -> None:
    """Print the tables."""
    options = arguments()
    config = DataConfig(
        train=({"kind": "tars", "paths": options.tars},),
        tokenizer=TokenizerConfig(qformer=options.tokenizer),
        max_text_length=options.buckets[-1],
        length_buckets=options.buckets,
    )
    rows = TrainingRows(config, "image_text", seed=0)
    print(
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"jax {jax.__version__}\n"
    )
    print_lengths(rows, options)
    if options.time:
        print_times(rows, options)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    data = os.environ.get("BLIP2_JAX_TESTDATA", "")
    parser.add_argument("--tars", default=f"{data}/data/flickr8k/train-*.tar")
    parser.add_argument("--tokenizer", default=f"{data}/tokenizers/bert-base-uncased")
    parser.add_argument(
        "--buckets", type=int, nargs="+", default=[8, 12, 16, 20, 24, 32]
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 64, 1680])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--time", action="store_true", help="run steps as well")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch_size", type=int, default=8, help="of the steps run")
    parser.add_argument("--steps", type=int, default=10, help="to run, each twice")
    options = parser.parse_args()
    options.buckets = tuple(options.buckets)
    return options


def print_lengths(rows: TrainingRows, options: argparse.Namespace) -> None:
    """Print the padded lengths, and GF an image of a stage-1 step at ViT-g."""
    buckets, config = options.buckets, presets.PRESETS["pretrain"]
    images = sum(len(source) for source in rows.mixture.sources)
    tower = flops.image_encoder(config)[0] / 1e9
    cost = {n: flops.training_step(flops.stage1(config, n)) / 1e9 for n in buckets}
    print(
        "| batch | " + " | ".join(f"to {n}" for n in buckets) + " | mean length "
        "| GF an image | saved | saved of a step on features |"
    )
    print("|---" * (len(buckets) + 5) + "|")
    for batch_size in options.batch_sizes:
        lengths = LengthBuckets(rows, buckets, batch_size)
        steps = range(options.epochs * images // batch_size)
        counts = collections.Counter(lengths.at(step) or buckets[-1] for step in steps)
        mean = lambda value, counts=counts: (
            sum(value(n) * times for n, times in counts.items()) / counts.total()
        )
        full, padded = cost[buckets[-1]], mean(cost.__getitem__)
        saved = full - padded
        print(
            f"| {batch_size} | "
            + " | ".join(f"{counts[n] / counts.total():.1%}" for n in buckets)
            + f" | {mean(float):.1f} | {padded:.1f} of {full:.1f} "
            f"| {saved / full:.1%} | {saved / (full - tower):.1%} |"
        )


def print_times(rows: TrainingRows, options: argparse.Namespace) -> None:
    """Time steps padded to the bucket and to the full length, alternating."""
    full, size = options.buckets[-1], options.batch_size
    lengths = LengthBuckets(rows, options.buckets, size)
    widths = [lengths.at(step) or full for step in range(options.steps)]
    run = prepare(options.size, size, rows.format.tokenizer.vocab_size)
    for width in sorted({*widths, full}):  # compiles
        run(texts(rows, 0, size, width))
    pairs = []
    for step, width in enumerate(widths):
        both = [("bucket", width), ("full", full)]
        took = {
            name: run(texts(rows, step, size, columns))
            for name, columns in (both if step % 2 else reversed(both))
        }
        pairs.append((took["bucket"], took["full"]))
    print(
        f"\nQ-Former of {options.size} size, batch {size}, {len(pairs)} steps of "
        "each in turn, seconds a step (medians):\n"
    )
    print("| padded to | steps | to the bucket | to the full length | ratio |")
    print("|---" * 5 + "|")
    for width in sorted(set(widths)):
        steps = [step for step, other in enumerate(widths) if other == width]
        print_row(str(width), [pairs[step] for step in steps])
    print_row("all", pairs)


def print_row(name: str, pairs: Sequence[tuple[float, float]]) -> None:
    """Print the medians of both, and the ratio of the sums over all steps."""
    ours, theirs = zip(*pairs, strict=True)
    print(
        f"| {name} | {len(pairs)} | {statistics.median(ours):.3f} "
        f"| {statistics.median(theirs):.3f} | {sum(theirs) / sum(ours):.2f} |"
    )


def texts(
    rows: TrainingRows, step: int, batch_size: int, width: int
) -> dict[str, np.ndarray]:
    """Return the token arrays of a step's captions."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return rows.format.arrays([rows.text(position) for position in positions], width)


def prepare(size: str, batch_size: int, vocab_size: int) -> Step:
    """Make a function that trains on token arrays and returns the seconds."""
    config = default_config("stage1").unlock()
    sizes = {**SIZES[size]}
    sizes["qformer"] = {**sizes.get("qformer", {}), "vocab_size": vocab_size}
    config.model.overrides = ConfigDict(sizes)
    config.precision, config.frozen = "float32", ()
    task = make_task(config)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    shapes = initial_params.parameter_shapes(config, task)
    schedule = make_schedule(config.optimizer, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule, shapes.trainable)
    begun = initial_params.initialise(config, task, shapes.trainable, mesh)
    state = jax.jit(lambda tree: create_state(tree, optimizer))(begun.trainable)
    step = make_train_step(task, optimizer, schedule, mesh, state, {}, seed=0)
    vision = task.model.config.vision
    shape = (batch_size, vision.num_tokens, vision.width)
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def run(tokens: dict[str, np.ndarray]) -> float:
        nonlocal state
        batch = sharding.make_global_batch({**tokens, "features": features}, mesh)
        start = time.perf_counter()
        state, metrics = step(state, {}, batch)
        float(metrics["loss"])
        return time.perf_counter() - start

    return run


if __name__ == "__main__":
    main()
