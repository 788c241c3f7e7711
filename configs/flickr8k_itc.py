"""blip2-jax train --config flickr8k_itc --workdir runs/f8k_itc

The contrast alone, from scratch: where `flickr8k_stage1.py` begins. With random
queries and words ITM and ITG learn little and cost two thirds of a step; on 6,000
photos and two cores it pays to let ITC find the way first. Paths as there.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import flickr8k_stage1

EPOCHS = 14  # passes over the photos, each time with one of five captions


def get_config(paths: str = "") -> ConfigDict:
    """The run's configuration."""
    config = flickr8k_stage1.get_config(paths).unlock()
    config.init.from_run = ""
    config.steps = EPOCHS * flickr8k_stage1.PHOTOS // config.batch_size
    config.objective.itm_weight = 0.0
    config.objective.itg_weight = 0.0
    config.objective.image_tokens = 10
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.final_learning_rate = 1e-4
    config.evaluation.every = config.steps // 5
    config.checkpoint.every = config.evaluation.every
    return config.lock()
