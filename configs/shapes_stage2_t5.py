"""blip2-jax train --config shapes_stage2_t5 --workdir runs/shapes_stage2_t5

Stage 2 on the shapes world with the frozen T5, an encoder-decoder; otherwise as
`shapes_stage2_opt`. Captions are not split into a prefix and a rest, because whole
captions teach more in a few steps.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import shapes_stage2_opt


def get_config(stage1: str = "runs/shapes_stage1") -> ConfigDict:
    """Build the configuration; `stage1` is the directory of a stage-1 run."""
    config = shapes_stage2_opt.get_config(stage1, "t5").unlock()
    config.data.question_share = 0.5
    config.data.prefix_split = "none"
    config.data.max_text_length = 13  # for a question
    config.data.max_target_length = 28
    return config.lock()
