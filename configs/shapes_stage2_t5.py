"""python launch/train.py --config configs/shapes_stage2_t5.py --workdir runs/shapes_t5

As `shapes_stage2_opt.py`, in front of the frozen T5: an encoder-decoder that learns to
finish captions which are split at a random word, and to answer questions.
"""

from ml_collections import ConfigDict

from configs import shapes_stage2_opt


def get_config(stage1: str = "runs/shapes_stage1") -> ConfigDict:
    """The run's configuration."""
    config = shapes_stage2_opt.get_config(stage1, "t5").unlock()
    config.steps = 400
    return config.lock()
