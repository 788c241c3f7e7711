"""python launch/train.py --config configs/stage1_vitl.py --workdir runs/stage1_vitl

Stage 1 of the paper in front of CLIP ViT-L/14: 2320 pairs a step. The Q-Former's
blocks begin as BERT-base's; `--config.init.from_weights='()'` begins from nothing.
"""

from ml_collections import ConfigDict

from blip2_jax.training import recipes


def get_config() -> ConfigDict:
    """The run's configuration."""
    config = recipes.stage1()
    config.model.preset = "pretrain_vitL"
    config.batch_size = 2320
    config.frozen_sources.vision = "weights/clip_vit_L.pth"
    return config.lock()
