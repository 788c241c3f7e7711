"""python launch/train.py --config configs/stage2_opt2_7b.py --workdir runs/opt2_7b

Stage 2 of the paper: queries in front of OPT-2.7B, 1920 captions a step, from the
stage-1 run that `--config.init.from_run` names. Behind the file's name, `vitl` is CLIP
ViT-L/14 in place of ViT-g, and `original` has the numbers of the authors' code in place
of the paper's: `stage2_opt2_7b.py:vitl,original`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The run's configuration."""
    vision, variant = recipes.parse_variant(
        variant, tuple(recipes.VISION), recipes.VARIANTS
    )
    return recipes.stage2("opt2.7b", vision, variant).lock()
