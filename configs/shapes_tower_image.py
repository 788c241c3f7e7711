"""blip2-jax train --config shapes_tower_image --workdir runs/image

The frozen image encoder of the shapes world: pictures against their captions' words,
without any label. Half of a batch shows one thing only, where nothing but its
attributes can tell near-duplicates apart, and half of the pictures lose colours to
shades of one tint, so that a shape is the same in every colour, one it never had
included.
`launch/pack_tower.py` makes the shipped file of the run. `shapes_tower_image.py:small`
is the encoder of a quarter of the size, in half of the steps.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import common
from blip2_jax.training.train_config import default_config

SCENES = 800_000  # hardly one is seen twice


STEPS = {"": 10_000, "small": 5000}


def get_config(size: str = "") -> ConfigDict:
    """The run's configuration; `size` is "" or "small"."""
    (size,) = common.parse_variant(size, tuple(STEPS))
    config = default_config("contrast").unlock()
    config.batch_size = 64
    config.steps = STEPS[size]
    config.precision = "float32"
    config.model.preset = "shapes_small" if size else "shapes"
    config.model.scan = False

    # Words alone, without a text transformer: an image token that is near to "red"
    # and to "ring" says two things, not one thing about red rings. But each word with
    # its neighbours, so that one token says both, and where.
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
    config.data.workers = 0  # one process a core is fastest on two cores

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.clip = 1.0
    config.checkpoint.every = 1000
    return config.lock()
