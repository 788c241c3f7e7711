"""blip2-jax train --config flickr8k_stage2 --workdir runs/f8k_stage2

Stage 2 on Flickr8k: the Q-Former of `flickr8k_stage1.py` in front of the frozen OPT
of `flickr8k_opt_text.py`. Paths as there, with the two runs as well:
`configs/flickr8k_stage2.py:data=DIR,features=DIR,words=DIR,stage1=RUN,opt=RUN`.
"""

from typing import Any

from ml_collections import ConfigDict

from blip2_jax.configs.flickr8k_opt_text import small_opt
from blip2_jax.configs.flickr8k_stage1 import (
    PHOTOS,
    photos,
    read_paths,
    small_qformer,
    vision_features,
)
from blip2_jax.training.train_config import default_config

EPOCHS = 7  # passes over the photos, each time with one of five captions


def get_config(paths: str = "") -> ConfigDict:
    """The run's configuration."""
    path = read_paths(paths)
    config = small_stage2(path, small_opt())
    config.batch_size = 128
    config.steps = EPOCHS * PHOTOS // config.batch_size
    config.init.from_run = path["stage1"]
    config.init.which = "best"

    config.data.train = (photos(path, "train"),)
    config.data.max_text_length = 20

    config.evaluation.every = config.steps // 4
    config.evaluation.sources = (photos(path, "val"),)
    config.evaluation.max_examples = 300
    config.evaluation.max_new_tokens = 20
    config.checkpoint.every = config.evaluation.every
    return config.lock()


def small_stage2(path: dict[str, str], language_model: dict[str, Any]) -> ConfigDict:
    """What the small models of real photos share; unlocked.

    Args:
      path: of "opt" (a run), "tokenizer" and "words".
      language_model: its sizes.
    """
    config = default_config("stage2").unlock()
    config.precision = "float32"
    config.model.preset = "pretrain_opt2.7b"
    config.model.overrides = ConfigDict(
        {
            "vision": vision_features(),
            "qformer": small_qformer(),
            "language_model": language_model,
        }
    )
    config.frozen = ("^language_model/",)
    config.frozen_sources.language_model = path["opt"]
    config.data.tokenizer.qformer = path["tokenizer"]
    config.data.tokenizer.language_model = path["words"]
    config.data.workers = 0
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.warmup_steps = 50
    config.optimizer.clip = 1.0
    config.evaluation.batch_size = 100
    config.log_every = 20
    return config
