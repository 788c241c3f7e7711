"""python launch/train.py --config configs/shapes_tower_t5.py --workdir runs/tower_t5

The frozen encoder-decoder of the shapes world: the rest of a caption after its first
words, and answers after questions, without any picture.
"""

from ml_collections import ConfigDict

from configs import shapes_tower_opt


def get_config() -> ConfigDict:
    """The run's configuration."""
    return shapes_tower_opt.get_config("t5")
