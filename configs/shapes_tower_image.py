"""python launch/train.py --config configs/shapes_tower_image.py --workdir runs/image

The frozen image encoder of the shapes world: pictures against their captions, without
any label. Half of a batch shows one thing only, where nothing but its attributes can
tell near-duplicates apart; `launch/pack_tower.py` makes the shipped file of the run.
"""

from ml_collections import ConfigDict

from blip2_jax.training.config import default_config

SCENES = 40_000


def get_config() -> ConfigDict:
    """The run's configuration."""
    config = default_config("contrast").unlock()
    config.batch_size = 128
    config.steps = 1200
    config.precision = "float32"
    config.model.preset = "shapes"
    config.model.scan = False

    world = {"kind": "shapes", "split": "train", "size": SCENES, "weight": 0.5}
    config.data.train = (world, world | {"things": 1})
    config.data.image = ConfigDict({"size": 64, "augment": False})
    config.data.tokenizer.qformer = "shapes:bert"
    config.data.max_text_length = 24
    config.data.workers = 1

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.final_learning_rate = 2e-5
    config.optimizer.clip = 1.0
    config.checkpoint.every = 500
    return config.lock()
