"""python launch/train.py --config configs/stage1_vitg.py --workdir runs/stage1_vitg

Stage 1 of the paper in front of EVA-CLIP ViT-g/14: 1680 pairs a step. The Q-Former's
blocks begin as BERT-base's; `--config.init.from_weights='()'` begins from nothing.
"""

from ml_collections import ConfigDict

from blip2_jax.training import recipes


def get_config() -> ConfigDict:
    """The run's configuration."""
    config = recipes.stage1()
    config.model.preset = "pretrain"
    config.batch_size = 1680
    config.frozen_sources.vision = "weights/eva_vit_g.pth"
    return config.lock()
