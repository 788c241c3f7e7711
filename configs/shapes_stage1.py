"""blip2-jax train --config shapes_stage1 --workdir runs/shapes_stage1

Stage 1 on the shapes world: the Q-Former learns ITC, ITM and ITG behind the frozen
image encoder that ships with the package. Part of `blip2-jax demo`. The argument sets
the number of queries, which is 20 without it: `shapes_stage1:4`.
"""

from ml_collections import ConfigDict

from blip2_jax.training.train_config import ConfigError, default_config

SCENES = 40_000


def get_config(num_queries: str = "") -> ConfigDict:
    """Build the configuration; `num_queries` is a number, or "" for the preset's."""
    config = default_config("stage1").unlock()
    config.batch_size = 64
    config.steps = 600
    config.model.preset = "shapes"
    config.model.scan = False
    if num_queries and not num_queries.isdecimal():
        raise ConfigError(
            f"shapes_stage1 takes the number of queries, not {num_queries!r}"
        )
    if num_queries:
        config.model.overrides.qformer = {"num_queries": int(num_queries)}
    config.frozen_sources.vision = "shapes:vision"
    config.objective = ConfigDict(
        {
            "full_itc_gradient": True,
            "itm_weight": 2.0,
            "itm_every": 4,
            "itg_every": 1,
            "negative_hardness": 0.2,  # similar scenes are hard enough
        }
    )

    config.data.train = (
        {"kind": "shapes", "split": "train", "size": SCENES, "count": 1},
    )
    config.data.image = ConfigDict({"size": 64, "augment": False})
    config.data.tokenizer.qformer = "shapes:bert"
    config.data.max_text_length = 28
    config.data.workers = 0  # fastest on two cores

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.clip = 1.0
    config.checkpoint.every = 1000
    config.log_every = 25
    return config.lock()
