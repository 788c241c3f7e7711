"""A linear model in place of stage 1, on real data; it compiles in a second.

The script is `launch/train.py` with this task, and a configuration file too:
`python toy_task.py --config toy_task.py --workdir DIR`.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from blip2_jax.nn.dropout import dropout
from blip2_jax.training import tasks
from blip2_jax.training.train_config import default_config

ROOT = pathlib.Path(__file__).parents[2]


def get_config() -> ConfigDict:
    """Return 20 steps without data workers, a checkpoint every 5."""
    config = default_config("stage1").unlock()
    config.steps, config.batch_size, config.log_every = 20, 8, 1
    config.optimizer.warmup_steps = 2
    config.frozen_sources.vision = "random"
    config.data.train = ({"kind": "shapes", "split": "train", "size": 64},)
    config.data.image.size = 16
    config.data.tokenizer.qformer = "shapes:bert"
    config.data.max_text_length = 12
    config.data.workers = 0
    config.checkpoint.every = 5
    return config.lock()


def make_toy(config: ConfigDict) -> tasks.Task:
    """Return a task that regresses text features from image features, with dropout."""

    def init_params(key: jax.Array) -> dict:
        return {
            "visual_encoder": {"kernel": jax.random.normal(key, (3, 8))},
            "qformer": {"kernel": jax.random.normal(key, (8, 8))},
        }

    def loss(params, batch, key, negatives=None):
        image = batch["image"].astype(jnp.float32).mean((1, 2)) / 255
        features = image @ params["visual_encoder"]["kernel"].astype(jnp.float32)
        text = jnp.cos(batch["text_ids"][:, :8] * 0.1)
        predicted = dropout(features @ params["qformer"]["kernel"], 0.1, key)
        value = jnp.mean((predicted - text) ** 2)
        return value, {"loss": value, "temperature": jnp.float32(0.07)}

    return tasks.Task(
        name="stage1",
        model=None,
        init_params=init_params,
        loss=loss,
        batch_format="image_text",
        tokenizers=("qformer",),
    )


if __name__ == "__main__":
    from blip2_jax.cli import train

    tasks.TASKS["stage1"] = make_toy
    sys.exit(train.main())
