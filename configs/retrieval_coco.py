"""blip2-jax train --config retrieval_coco:vitg --workdir runs/coco_vitg

Fine-tune for retrieval with ITC, ITM and ITG on COCO, with the image encoder trained at
364 pixels, from a stage-1 run (appendix, table 9). The argument selects the image
encoder, vitg or vitl. `retrieval_coco:vitg,without_itg` is the second row of table 6,
which `configs/eval` expects in runs/retrieval_vitg_without_itg; `frozen` keeps the
image encoder as it was. The final rate and the start of the warm-up are those of the
authors' code.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import common
from blip2_jax.models import presets
from blip2_jax.training.train_config import default_config

EPOCHS = 5


def get_config(variant: str = "vitg") -> ConfigDict:
    """Build the configuration; `variant` is e.g. "vitg,without_itg,frozen"."""
    vision, itg, frozen = common.parse_variant(
        variant, ("vitg", "vitl"), ("", "without_itg"), ("", "frozen")
    )
    config = default_config("stage1").unlock()
    config.batch_size = 224
    config.steps = EPOCHS * common.COCO_CAPTIONS // config.batch_size

    if vision == "vitg":
        config.model.preset = "pretrain"
        common.set_vision(config, presets.at_resolution(presets.EVA_VIT_G, 364))
        config.frozen_sources.vision = common.EVA_VIT_G
        config.optimizer.learning_rate = 1e-5
        config.optimizer.b2 = 0.999
        config.optimizer.layer_decay = 0.95
    else:
        config.model.preset = "pretrain_vitL"
        common.set_vision(config, presets.at_resolution(presets.CLIP_VIT_L, 364))
        config.frozen_sources.vision = common.CLIP_VIT_L
        config.optimizer.learning_rate = 5e-6
        config.optimizer.b2 = 0.98
        config.optimizer.layer_decay = 1.0
    config.model.remat = "full"  # the image encoder's activations would fill a device
    config.init.from_run = f"runs/stage1_{vision}"
    config.frozen = ()
    config.data.tokenizer.qformer = common.BERT

    # In a step, the captions of an image are positives of each other.
    config.objective = ConfigDict({"itg_weight": 0.0 if itg == "without_itg" else 1.0})
    config.data.train = (common.COCO_TRAIN,)

    config.optimizer.warmup_steps = 1000
    config.optimizer.warmup_start_learning_rate = 1e-8
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9

    config.evaluation.every = config.steps // EPOCHS
    config.evaluation.sources = (common.COCO_VALIDATION,)
    config.evaluation.max_examples = 1000
    config.evaluation.rerank = 128
    config.compilation_cache = "runs/compiled"
    if frozen:
        common.freeze_vision(config)
    return config.lock()
