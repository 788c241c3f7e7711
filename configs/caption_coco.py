"""blip2-jax train --config caption_coco:opt2.7b --workdir runs/coco_opt

Fine-tune for COCO captions after "a photo of", with the image encoder trained at 364
pixels, from a stage-2 run (appendix, table 7). The argument selects the language model,
opt2.7b, opt6.7b or flant5xl; `caption_coco:opt2.7b,frozen` keeps the image encoder as
it was. The final rate and the start of the warm-up are those of the authors' code.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import common
from blip2_jax.models import presets
from blip2_jax.training.train_config import default_config

EPOCHS = 5
# Decay of the learning rate from block to block of the image encoder.
LAYER_DECAY = {"opt2.7b": 1.0, "opt6.7b": 0.95, "flant5xl": 1.0}


def get_config(variant: str = "opt2.7b") -> ConfigDict:
    """Build the configuration; `variant` is e.g. "flant5xl,frozen"."""
    language, frozen = common.parse_variant(variant, tuple(LAYER_DECAY), ("", "frozen"))
    config = default_config("stage2").unlock()
    config.batch_size = 256
    config.steps = EPOCHS * common.COCO_CAPTIONS // config.batch_size

    config.model.preset = f"pretrain_{language}"
    common.set_vision(config, presets.at_resolution(presets.EVA_VIT_G, 364))
    config.model.remat = "full"  # the image encoder's activations would fill a device
    config.init.from_run = common.run_directory(language)
    config.frozen = ("^language_model/",)
    config.frozen_sources.vision = common.EVA_VIT_G
    config.frozen_sources.language_model = common.LANGUAGE_MODELS[language]
    config.data.tokenizer.qformer = common.BERT
    config.data.tokenizer.language_model = common.LANGUAGE_MODELS[language]

    config.data.train = (common.COCO_TRAIN,)
    config.data.prompt = "a photo of"
    config.data.prefix_split = "none"  # only the prompt precedes the caption
    if language == "flant5xl":
        config.data.max_text_length = 8  # the encoder reads only the prompt
        config.data.max_target_length = 32

    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 1000
    config.optimizer.warmup_start_learning_rate = 1e-8
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.layer_decay = LAYER_DECAY[language]

    config.evaluation.every = config.steps // EPOCHS
    config.evaluation.sources = (common.COCO_VALIDATION,)
    config.evaluation.max_examples = 1000
    config.evaluation.num_beams = 5
    config.compilation_cache = "runs/compiled"
    if frozen:
        common.freeze_vision(config)
    return config.lock()
