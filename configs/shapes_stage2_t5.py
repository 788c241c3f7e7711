"""blip2-jax train --config shapes_stage2_t5 --workdir runs/shapes_t5

As `shapes_stage2_opt.py`, in front of the frozen T5: an encoder-decoder that learns to
caption and to answer questions. Captions are not split into a prompt and a rest: whole
ones teach more in a few steps.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import shapes_stage2_opt


def get_config(stage1: str = "runs/shapes_stage1") -> ConfigDict:
    """The run's configuration."""
    config = shapes_stage2_opt.get_config(stage1, "t5").unlock()
    config.data.question_share = 0.5
    config.data.prefix_split = "none"
    config.data.max_text_length = 13  # of a question
    config.data.max_target_length = 28
    return config.lock()
