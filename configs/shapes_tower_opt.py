"""blip2-jax train --config shapes_tower_opt --workdir runs/tower_opt

Train the decoder-only language model of the shapes world on its texts alone. A document
is the description of a scene, followed by captions, questions and answers that follow
from it: the model learns to look things up in its context, as it must with the queries
in stage 2.

The shipped weights were trained by two such runs: the second one started from the first
(`init.from_weights`), with seed 1 and a learning rate of 3e-3. The argument `small`
selects a model of a third of the size, trained for 6,000 steps.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import common
from blip2_jax.training.train_config import default_config

SCENES = 200_000
STEPS = {"": 3000, "small": 6000}


def get_config(size: str = "", family: str = "opt") -> ConfigDict:
    """Build the configuration; `size` is "" or "small", `family` "opt" or "t5"."""
    (size,) = common.parse_variant(size, tuple(STEPS))
    config = default_config("language_model").unlock()
    config.batch_size = 32
    config.steps = STEPS[size]
    config.precision = "float32"
    config.model.preset = f"shapes_{family}_{size}".removesuffix("_")
    config.model.scan = False

    config.objective = ConfigDict({"initial_std": 0.08})

    world = {
        "kind": "shapes",
        "split": "train",
        "size": SCENES,
        "texts": "both",
        "count": 8,
        "images": False,
    }
    # In a scene of two objects, every question must say which one it is about.
    config.data.train = (world | {"weight": 0.6}, world | {"weight": 0.4, "things": 2})
    config.data.question_share = 0.6
    config.data.question_prompt = "{}"
    config.data.context_share = 0.85
    config.data.texts_per_document = 5
    config.data.tokenizer.language_model = f"shapes:{family}"
    config.data.max_text_length = 76
    config.data.workers = 1

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.final_learning_rate = 4e-5
    config.optimizer.clip = 1.0
    config.checkpoint.every = 1000
    return config.lock()
