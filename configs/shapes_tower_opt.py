"""python launch/train.py --config configs/shapes_tower_opt.py --workdir runs/tower_opt

The frozen decoder-only language model of the shapes world: captions, questions and
answers, without any picture.
"""

from ml_collections import ConfigDict

from blip2_jax.training.config import default_config

SCENES = 200_000


def get_config(family: str = "opt") -> ConfigDict:
    """The run's configuration; `family` is "opt" or "t5"."""
    config = default_config("language_model").unlock()
    config.batch_size = 128
    config.steps = 800
    config.precision = "float32"
    config.model.preset = f"shapes_{family}"
    config.model.scan = False

    config.data.train = (
        {
            "kind": "shapes",
            "split": "train",
            "size": SCENES,
            "texts": "both",
            "images": False,
        },
    )
    config.data.question_share = 0.5
    config.data.tokenizer.language_model = f"shapes:{family}"
    config.data.max_text_length = 26
    config.data.workers = 1

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.final_learning_rate = 1e-4
    config.optimizer.clip = 1.0
    config.checkpoint.every = 500
    return config.lock()
