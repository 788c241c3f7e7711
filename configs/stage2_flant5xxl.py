"""python launch/train.py --config configs/stage2_flant5xxl.py --workdir runs/flant5xxl

Stage 2 of the paper: queries in front of FlanT5-XXL, 1520 captions a step. A caption
is split at a random word: the first part is read by the encoder beside the queries,
the rest is to be written (prefix language modelling). Its language model is divided
over devices by `--config.mesh.fsdp=8`, say.
"""

from ml_collections import ConfigDict

from blip2_jax.training import recipes


def get_config() -> ConfigDict:
    """The run's configuration."""
    config = recipes.stage2()
    config.model.preset = "pretrain_flant5xxl"
    config.batch_size = 1520
    config.frozen_sources.vision = "weights/eva_vit_g.pth"
    config.frozen_sources.language_model = "weights/flan-t5-xxl"
    config.data.tokenizer.language_model = "weights/flan-t5-xxl"
    return config.lock()
