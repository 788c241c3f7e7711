"""python launch/train.py --config configs/shapes_tower_t5.py --workdir runs/tower_t5

As `shapes_tower_opt.py`, an encoder-decoder: the encoder reads a description and a
question, or a description and the first words of a caption; the decoder answers, or
finishes the caption.
"""

from ml_collections import ConfigDict

from configs import shapes_tower_opt


def get_config() -> ConfigDict:
    """The run's configuration."""
    config = shapes_tower_opt.get_config("t5").unlock()
    config.batch_size = 64
    config.steps = 1000
    config.data.texts_per_document = 1
    config.data.max_text_length = 48
    config.data.max_target_length = 28
    return config.lock()
