"""blip2-jax train --config stage1_vitg --workdir runs/stage1_vitg

Stage 1 of the paper with EVA-CLIP ViT-g/14: 1680 pairs a step (section 3.4). The blocks
of the Q-Former start from BERT-base; `--config.init.from_weights='()'` trains them from
scratch. The argument `original`, as in `stage1_vitg:original`, selects the numbers of
the authors' code.

On 256 chips of TPU v5e, `--config.batch_size=1792`; on 64 of v5p, 1664; the default
mesh is best on both (docs/scaling.md).
"""

from ml_collections import ConfigDict

from blip2_jax.configs import common
from blip2_jax.training.train_config import default_config


def get_config(variant: str = "paper") -> ConfigDict:
    """Build the configuration; `variant` is "paper" or "original"."""
    (variant,) = common.parse_variant(variant, common.VARIANTS)
    config = default_config("stage1").unlock()
    config.steps = 250_000
    config.batch_size = 1680

    config.model.preset = "pretrain"
    config.frozen_sources.vision = common.EVA_VIT_G
    config.init.from_weights = (common.BERT,)
    config.data.tokenizer.qformer = common.BERT

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

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 2000
    config.optimizer.final_learning_rate = 1e-5  # the authors' code; not in the paper
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98

    config.evaluation.every = 5000
    config.evaluation.sources = (common.COCO_VALIDATION,)
    config.evaluation.max_examples = 1000
    config.compilation_cache = "runs/compiled"

    if variant == "original":
        common.use_original_numbers(config, batch_size=100 * 16)
        config.optimizer.warmup_steps = 5000
        config.objective = ConfigDict({"num_shards": 16})  # mean of ITG on each GPU
    return config.lock()
