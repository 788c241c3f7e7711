"""blip2-jax train --config stage2_flant5xxl --workdir runs/flant5xxl

Stage 2 of the paper with FlanT5-XXL: 1520 captions a step (section 3.4), from the
stage-1 run that `--config.init.from_run` names. A caption is split at a random word:
the encoder reads the first part after the queries, and the decoder writes the rest
(prefix language modelling). The argument `original`, as in `stage2_flant5xxl:original`,
selects the numbers of the authors' code.

On 256 chips of TPU v5e, `--config.batch_size=1536 --config.mesh.tensor=4` divides the
language model with the least traffic; on 8 chips, `--config.mesh.fsdp=8`. On v5p the
default mesh is best, with the same batch (docs/scaling.md).
"""

from ml_collections import ConfigDict

from blip2_jax.configs import common
from blip2_jax.training.train_config import default_config


def get_config(variant: str = "paper") -> ConfigDict:
    """Build the configuration; `variant` is "paper" or "original"."""
    (variant,) = common.parse_variant(variant, common.VARIANTS)
    config = default_config("stage2").unlock()
    config.steps = 80_000
    config.batch_size = 1520

    config.model.preset = "pretrain_flant5xxl"
    config.init.from_run = "runs/stage1_vitg"
    config.frozen_sources.vision = common.EVA_VIT_G
    config.frozen_sources.language_model = common.LANGUAGE_MODELS["flant5xxl"]
    config.data.tokenizer.qformer = common.BERT
    config.data.tokenizer.language_model = common.LANGUAGE_MODELS["flant5xxl"]

    # The paper draws from 129 million images as from one set: an image of LAION is as
    # frequent as one of COCO. So the weight of a set is its number of images, here in
    # millions as BLIP's paper counts them, also where some could not be downloaded.
    # Length buckets would not help: a batch of so many captions nearly always contains
    # one of the full length.
    config.data.train = (
        common.COCO_TRAIN | {"weight": 0.113},
        common.VISUAL_GENOME | {"weight": 0.1},
        common.tar_files("cc3m") | {"weight": 3.0},
        common.tar_files("cc12m") | {"weight": 10.0},
        common.tar_files("sbu") | {"weight": 0.86},
        common.tar_files("laion115m") | {"weight": 115.0},
    )
    config.data.image.size = 224
    config.data.prefix_split = "auto"  # at a random word, for an encoder-decoder

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 2000
    config.optimizer.final_learning_rate = 5e-5
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98

    config.evaluation.every = 5000
    config.evaluation.sources = (common.COCO_VALIDATION,)
    config.evaluation.max_examples = 1000
    config.compilation_cache = "runs/compiled"

    if variant == "original":
        common.use_original_numbers(config, batch_size=64 * 16)
        config.data.prefix_split = "none"
        config.objective = ConfigDict({"frozen_dropout": True, "num_shards": 16})
    return config.lock()
