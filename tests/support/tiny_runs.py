"""Directories of tiny runs, created without training."""

import pathlib

import jax
from ml_collections import ConfigDict

from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.training.setup import TrainingRun, set_up
from blip2_jax.training.train_config import default_config

QFORMER = {
    "width": 16,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 32,
    "num_queries": 4,
    "max_positions": 40,
    "projection_dim": 8,
}
VISION = {
    "kind": "vit",
    "width": 16,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 32,
    "image_size": 32,
    "patch_size": 16,
}
OPT = {"kind": "opt", "width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}


def tiny_config(task: str) -> ConfigDict:
    """Return the configuration of the smallest model of a stage."""
    config = default_config(task).unlock()
    words = load_tokenizer("shapes:bert", language_model=False).vocab_size
    parts = {"vision": VISION, "qformer": QFORMER | {"vocab_size": words}}
    config.data.tokenizer.qformer = "shapes:bert"
    config.frozen_sources.vision = "random"
    if task == "stage2":
        config.carried = ()
        words = load_tokenizer("shapes:opt", language_model=True).vocab_size
        parts["language_model"] = OPT | {"vocab_size": words}
        config.data.tokenizer.language_model = "shapes:opt"
        config.frozen_sources.language_model = "random"
    config.model.overrides = ConfigDict(parts)
    config.precision = "float32"
    config.batch_size = 8
    config.data.train = ({"kind": "shapes", "split": "train", "size": 16},)
    config.data.image.size = 32
    config.data.workers = 0
    return config.lock()


def make_run(directory: pathlib.Path, task: str, factor: float = 1.0) -> TrainingRun:
    """Make a run with a checkpoint of its first parameters.

    Args:
      directory: directory of the run.
      task: "stage1" or "stage2".
      factor: factor of the trained matrices; with 30, texts depend on the image.
    """
    run = set_up(tiny_config(task), directory)
    trees = run.trees()
    trees["trainable"] = jax.tree.map(
        lambda leaf: leaf * factor if leaf.ndim > 1 else leaf, trees["trainable"]
    )
    run.checkpoints.save(0, trees, {})
    run.checkpoints.close()
    return run
