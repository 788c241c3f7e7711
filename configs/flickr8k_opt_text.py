"""blip2-jax train --config flickr8k_opt_text --workdir runs/f8k_opt

A small OPT that learns the language of captions: the training captions of Flickr8k
as text alone, half of them behind another caption of the same photo, so that it learns
to go by what stands before. It is the frozen language model of `flickr8k_stage2.py`.
Its vocabulary comes from the same captions, by `blip2-jax train_vocabulary`. Paths
as in `flickr8k_stage1.py`, of which it needs `data` and `words`.
"""

from typing import Any

from ml_collections import ConfigDict

from blip2_jax.configs.flickr8k_stage1 import PHOTOS, read_paths
from blip2_jax.training.train_config import default_config

EPOCHS = 10  # passes over the photos, each time with one of five captions


def get_config(paths: str = "") -> ConfigDict:
    """The run's configuration."""
    path = read_paths(paths)
    config = small_language_model(small_opt(), path["words"])
    config.steps = EPOCHS * PHOTOS // config.batch_size
    captions = {"kind": "tars", "paths": f"{path['data']}/train-*.tar"}
    config.data.train = (captions,)
    config.data.context_share = 0.5
    config.data.max_text_length = 36
    config.checkpoint.every = config.steps // 2
    return config.lock()


def small_language_model(sizes: dict[str, Any], words: str) -> ConfigDict:
    """What the small language models of real photos share; unlocked.

    Args:
      sizes: of the model.
      words: its tokenizer.
    """
    config = default_config("language_model").unlock()
    config.batch_size = 64
    config.precision = "float32"
    config.model.preset = "pretrain_opt2.7b"
    config.model.overrides = ConfigDict({"language_model": sizes})
    config.objective = ConfigDict({"initial_std": 0.07})
    config.data.tokenizer.language_model = words
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.final_learning_rate = 2e-5
    config.optimizer.warmup_steps = 50
    config.optimizer.clip = 1.0
    config.log_every = 20
    return config


def small_opt() -> dict[str, Any]:
    """Sizes of a language model of 2 million parameters."""
    return {
        "kind": "opt",
        "width": 192,
        "depth": 3,
        "heads": 3,
        "mlp_dim": 768,
        "vocab_size": 4096,
        "max_positions": 64,
    }
