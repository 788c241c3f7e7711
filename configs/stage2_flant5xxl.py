"""python launch/train.py --config configs/stage2_flant5xxl.py --workdir runs/flant5xxl

Stage 2 of the paper: queries in front of FlanT5-XXL, 1520 captions a step, from the
stage-1 run that `--config.init.from_run` names. A caption is split at a random word:
the first part is read by the encoder beside the queries, the rest is to be written
(prefix language modelling). Its language model is divided over devices by
`--config.mesh.fsdp=8`, say. `stage2_flant5xxl.py:original` has the numbers of the
authors' code in place of the paper's.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The run's configuration."""
    (variant,) = recipes.parse_variant(variant, recipes.VARIANTS)
    return recipes.stage2("flant5xxl", variant=variant).lock()
