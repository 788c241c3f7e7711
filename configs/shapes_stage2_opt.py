"""blip2-jax train --config shapes_stage2_opt --workdir runs/shapes_stage2_opt

Stage 2 on the shapes world: captions and questions, with the frozen OPT that ships with
the package. The argument is the stage-1 run, by default `runs/shapes_stage1`:
`shapes_stage2_opt:DIR`. Part of `blip2-jax demo`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import shapes_stage1
from blip2_jax.training.train_config import default_config


def get_config(stage1: str = "runs/shapes_stage1", family: str = "opt") -> ConfigDict:
    """Build the configuration; `family` is "opt" or "t5"."""
    config = default_config("stage2").unlock()
    config.batch_size = 32  # half of stage 1's: more steps in the same time learn more
    config.steps = 1300
    config.model.preset = f"shapes_{family}"
    config.model.scan = False
    config.init.from_run = stage1
    config.frozen_sources.vision = "shapes:vision"
    config.frozen_sources.language_model = f"shapes:{family}"

    config.data.train = (
        {
            "kind": "shapes",
            "split": "train",
            "size": shapes_stage1.SCENES,
            "texts": "both",
            "count": 1,
        },
    )
    config.data.question_share = 0.2
    config.data.question_prompt = "{}"
    config.data.image = ConfigDict({"size": 64, "augment": False})
    config.data.tokenizer.language_model = f"shapes:{family}"
    config.data.max_text_length = 28
    config.data.workers = 0  # fastest on two cores

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 5e-3
    # At the full rate, more unseen combinations of attributes were named wrongly.
    config.optimizer.rate_factors = (("qformer/.*", 0.5),)
    config.optimizer.warmup_steps = 50
    config.optimizer.clip = 1.0
    config.checkpoint.every = 1000
    config.log_every = 25
    return config.lock()
