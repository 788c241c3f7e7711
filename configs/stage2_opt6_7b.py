"""python launch/train.py --config configs/stage2_opt6_7b.py --workdir runs/opt6_7b

Stage 2 of the paper: queries in front of OPT-6.7B, 1920 captions a step, from the
stage-1 run that `--config.init.from_run` names. Its language model is divided over
devices by `--config.mesh.fsdp=8`, say. `stage2_opt6_7b.py:original` has the numbers of
the authors' code in place of the paper's.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The run's configuration."""
    (variant,) = recipes.parse_variant(variant, recipes.VARIANTS)
    return recipes.stage2("opt6.7b", variant=variant).lock()
