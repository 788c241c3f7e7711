"""python launch/train.py --config configs/stage2_opt2_7b.py --workdir runs/opt2_7b

Stage 2 of the paper: queries in front of OPT-2.7B, 1920 captions a step, from the
stage-1 run that `--config.init.from_run` names.
"""

from ml_collections import ConfigDict

from blip2_jax.training import recipes


def get_config() -> ConfigDict:
    """The run's configuration."""
    config = recipes.stage2()
    config.model.preset = "pretrain_opt2.7b"
    config.batch_size = 1920
    config.frozen_sources.vision = "weights/eva_vit_g.pth"
    config.frozen_sources.language_model = "weights/opt-2.7b"
    config.data.tokenizer.language_model = "weights/opt-2.7b"
    return config.lock()
