"""blip2-jax train --config shapes_tower_image --workdir runs/tower_image

Train the image encoder of the shapes world on images and the words of their captions,
without labels. Half of a batch shows one object only, where only its attributes
distinguish similar scenes. Half of the images are reduced to shades of one colour, so
that the encoder recognises a shape in every colour, including unseen combinations.

`blip2-jax pack_tower` writes the shipped file from the run. The argument `small`
selects an encoder of a quarter of the size, trained for half of the steps.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import common
from blip2_jax.training.train_config import default_config

SCENES = 800_000  # few scenes are drawn twice
STEPS = {"": 10_000, "small": 5000}


def get_config(size: str = "") -> ConfigDict:
    """Build the configuration; `size` is "" or "small"."""
    (size,) = common.parse_variant(size, tuple(STEPS))
    config = default_config("contrast").unlock()
    config.batch_size = 64
    config.steps = STEPS[size]
    config.precision = "float32"
    config.model.preset = "shapes_small" if size else "shapes"
    config.model.scan = False

    # Contrast image tokens with word embeddings, without a text transformer, so that
    # "red" and "ring" are separate properties of a token. A word is embedded with its
    # neighbours, so that one token represents both properties and the position.
    config.objective = ConfigDict(
        {"text_depth": 0, "text_window": 3, "initial_std": 0.08}
    )
    world = {"kind": "shapes", "split": "train", "size": SCENES, "count": 1}
    config.data.train = (
        world | {"weight": 0.5},
        world | {"weight": 0.5, "things": 1},
    )
    config.data.image = ConfigDict({"size": 64, "augment": False, "monochrome": 0.5})
    config.data.tokenizer.qformer = "shapes:bert"
    config.data.max_text_length = 28
    config.data.workers = 0  # fastest on two cores

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.clip = 1.0
    config.checkpoint.every = 1000
    return config.lock()
