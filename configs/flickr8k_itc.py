"""blip2-jax train --config flickr8k_itc --workdir runs/f8k_itc

ITC alone on Flickr8k, from scratch; `flickr8k_stage1` continues with all objectives.
With random queries and embeddings, ITM and ITG learn little but take two thirds of a
step, so that on 6,000 photos it pays to train ITC first. The paths in the argument are
those of `flickr8k_stage1`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import flickr8k_stage1

EPOCHS = 14  # passes over the photos, each time with one of five captions


def get_config(argument: str = "") -> ConfigDict:
    """Build the configuration; `argument` changes the paths."""
    config = flickr8k_stage1.get_config(argument).unlock()
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
