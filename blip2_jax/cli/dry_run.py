"""Show five samples of a data configuration, as a model reads them."""

from __future__ import annotations

import math
import pathlib
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from blip2_jax.data.data_config import (
    BatchFormat,
    DataConfig,
    data_config,
    question_format,
)
from blip2_jax.data.examples import TextFormat
from blip2_jax.data.pipeline import Batch, training_batches
from blip2_jax.data.text.tokenizers import load_tokenizer

SAMPLES = 5
IMAGE_FILE = "dry_run.png"


def dry_run(config: Any, path: str | pathlib.Path = IMAGE_FILE) -> None:
    """Print the first five samples of a run and draw them.

    Args:
      config: configuration of a training run, of which `task`, `seed`, `data` and
        `model.question_in_qformer` are used.
      path: image file to write.

    Raises:
      ValueError, FileNotFoundError: the data cannot be read.
    """
    options = data_config({**dict(config.data.items()), "workers": 0})
    question_in_qformer = config.get("model", {}).get("question_in_qformer", False)
    task_format = batch_format(config.task, options, question_in_qformer)
    batch = first_batch(options, task_format, config.seed)
    tokenizer = TextFormat(options, task_format).tokenizer
    for row in range(SAMPLES):
        print(f"{row + 1}. {batch['_key'][row]}  (image {batch['image_id'][row]})")
        for line in describe(batch, row, tokenizer):
            print(f"   {line}")
    draw(batch, path)
    print(f"images: {path}")


def batch_format(
    task: str, options: DataConfig, question_in_qformer: bool = False
) -> BatchFormat:
    """Return the format of a task's batches, given its language model's family."""
    if task in ("stage1", "contrast"):
        return "image_text"
    if not options.tokenizer.language_model:
        raise ValueError(f"task {task} needs data.tokenizer.language_model")
    tokenizer = load_tokenizer(
        options.tokenizer_spec("language_model"), language_model=True
    )
    decoder = tokenizer.family == "decoder_only"
    if task == "language_model":
        return "text_decoder" if decoder else "text_encoder_decoder"
    family: BatchFormat = "decoder" if decoder else "encoder_decoder"
    return question_format(family) if question_in_qformer else family


def first_batch(
    options: Mapping[str, Any] | DataConfig, task_format: BatchFormat, seed: int
) -> Batch:
    """Return the first batch, of five samples; print what could not be read."""
    batches = training_batches(options, task_format, seed=seed, batch_size=SAMPLES)
    try:
        batch = next(batches)
    finally:
        batches.close()
    if batches.broken_stats.counts:
        print(f"broken and replaced: {batches.broken_stats}")
    return batch


def describe(batch: Batch, row: int, tokenizer: Any) -> list[str]:
    """Return lines that describe a sample: its text, image and token arrays.

    Target tokens are shown as the text that they decode to.
    """
    lines = [f"text: {batch['_text'][row]}"]
    for name in ("image", "features"):
        if name in batch:
            values = batch[name][row]
            lines.append(
                f"{name}: {values.dtype} {list(values.shape)}, "
                f"{values.min():.4g} .. {values.max():.4g}"
            )
    for name in sorted(batch):
        if name.endswith("_ids"):
            mask = batch[name.removesuffix("_ids") + "_mask"][row]
            ids = batch[name][row][mask]
            lines.append(f"{name}: {' '.join(map(str, ids))}")
    if "text_ids" in batch and "target_mask" in batch:
        targets = batch["text_ids"][row][batch["target_mask"][row]]
        lines.append(f"targets: {tokenizer.decode(targets)!r}")
    return lines


def draw(batch: Batch, path: str | pathlib.Path) -> None:
    """Draw the samples side by side with their keys and texts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(batch["_key"])
    figure, axes = pyplot.subplots(1, count, figsize=(3 * count, 4.2))
    for row, axis in enumerate(np.atleast_1d(axes)):
        axis.axis("off")
        if "image" in batch:
            axis.imshow(batch["image"][row])
        elif "features" in batch:
            axis.imshow(_feature_map(batch["features"][row]), cmap="viridis")
        text = "\n".join(textwrap.wrap(batch["_text"][row], 30))
        axis.set_title(batch["_key"][row], fontsize=8)
        axis.text(
            0.5,
            -0.04,
            text,
            ha="center",
            va="top",
            fontsize=8,
            transform=axis.transAxes,
        )
    figure.savefig(path, dpi=100, bbox_inches="tight")
    pyplot.close(figure)


def _feature_map(features: np.ndarray) -> np.ndarray:
    """Return the norms of a photo's features as a square [S, S]."""
    norms = np.linalg.norm(features.astype(np.float32), axis=-1)
    side = math.isqrt(len(norms))
    return norms[-side * side :].reshape(side, side)
