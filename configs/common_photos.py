"""Small models that the Flickr8k and DAQUAR configurations share.

Their image encoder is an ImageNet MobileNetV2 whose features (49 x 1280 for each photo)
are computed once, before training.
"""

from typing import Any

from ml_collections import ConfigDict

from blip2_jax.training.train_config import default_config

VISION_FEATURES = {"kind": "features", "num_tokens": 49, "width": 1280}


def small_qformer() -> dict[str, float]:
    """Return the sizes of the small Q-Former that differ from the paper's."""
    return {
        "width": 256,
        "depth": 2,
        "heads": 4,
        "mlp_dim": 512,
        "cross_attention_every": 1,
        "num_queries": 8,
        "projection_dim": 128,
        "initial_std": 0.06,
    }


def small_opt(vocab_size: int) -> dict[str, Any]:
    """Return the sizes of an OPT of about 2 million parameters."""
    return {
        "kind": "opt",
        "width": 192,
        "depth": 3,
        "heads": 3,
        "mlp_dim": 768,
        "vocab_size": vocab_size,
        "max_positions": 64,
    }


def language_model_config(sizes: dict[str, Any], tokenizer: str) -> ConfigDict:
    """Return an unlocked configuration that trains a small language model on texts.

    Args:
      sizes: sizes of the language model.
      tokenizer: directory of its tokenizer.
    """
    config = default_config("language_model").unlock()
    config.batch_size = 64
    config.precision = "float32"
    config.model.preset = "pretrain_opt2.7b"
    config.model.overrides = ConfigDict({"language_model": sizes})
    config.objective = ConfigDict({"initial_std": 0.07})
    config.data.tokenizer.language_model = tokenizer
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.final_learning_rate = 2e-5
    config.optimizer.warmup_steps = 50
    config.optimizer.clip = 1.0
    config.log_every = 20
    return config


def stage2_config(sizes: dict[str, Any], paths: dict[str, str]) -> ConfigDict:
    """Return an unlocked stage-2 configuration with a frozen small language model.

    Args:
      sizes: sizes of the language model.
      paths: "opt" (its run), "words" (its tokenizer) and "tokenizer" (the Q-Former's).
    """
    config = default_config("stage2").unlock()
    config.precision = "float32"
    config.model.preset = "pretrain_opt2.7b"
    config.model.overrides = ConfigDict(
        {
            "vision": VISION_FEATURES,
            "qformer": small_qformer(),
            "language_model": sizes,
        }
    )
    config.frozen = ("^language_model/",)
    config.frozen_sources.language_model = paths["opt"]
    config.data.tokenizer.qformer = paths["tokenizer"]
    config.data.tokenizer.language_model = paths["words"]
    config.data.workers = 0
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.warmup_steps = 50
    config.optimizer.clip = 1.0
    config.evaluation.batch_size = 100
    config.log_every = 20
    return config
