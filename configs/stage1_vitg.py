"""python launch/train.py --config configs/stage1_vitg.py --workdir runs/stage1_vitg

Stage 1 of the paper in front of EVA-CLIP ViT-g/14: 1680 pairs a step. The Q-Former's
blocks begin as BERT-base's; `--config.init.from_weights='()'` begins from nothing.
`stage1_vitg.py:original` has the numbers of the authors' code in place of the paper's.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import recipes


def get_config(variant: str = "paper") -> ConfigDict:
    """The run's configuration."""
    (variant,) = recipes.parse_variant(variant, recipes.VARIANTS)
    return recipes.stage1("vitg", variant).lock()
