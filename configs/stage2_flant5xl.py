"""python launch/train.py --config configs/stage2_flant5xl.py --workdir runs/flant5xl

Stage 2 of the paper: queries in front of FlanT5-XL, 1520 captions a step, from the
stage-1 run that `--config.init.from_run` names. A caption is split at a random word:
the first part is read by the encoder beside the queries, the rest is to be written
(prefix language modelling). Behind the file's name, `vitl` is CLIP ViT-L/14 in place of
ViT-g, and `original` has the numbers of the authors' code in place of the paper's:
`stage2_flant5xl.py:vitl,original`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The run's configuration."""
    vision, variant = recipes.parse_variant(
        variant, tuple(recipes.VISION), recipes.VARIANTS
    )
    return recipes.stage2("flant5xl", vision, variant).lock()
