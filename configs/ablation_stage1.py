"""blip2-jax train --config ablation_stage1 --workdir runs/without_stage1

Stage 2 without representation learning (figure 5 of the paper): the Q-Former starts
from BERT-base instead of a stage-1 run. Evaluates zero-shot VQAv2 during training, as
the figure does. The argument selects the language model and the curve:
`ablation_stage1:flant5xl,with` starts from stage 1.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import (
    common,
    stage2_flant5xl,
    stage2_flant5xxl,
    stage2_opt2_7b,
    stage2_opt6_7b,
)

BASES = {
    "opt2.7b": stage2_opt2_7b,
    "opt6.7b": stage2_opt6_7b,
    "flant5xl": stage2_flant5xl,
    "flant5xxl": stage2_flant5xxl,
}


def get_config(variant: str = "opt2.7b") -> ConfigDict:
    """Build the configuration; `variant` is e.g. "flant5xl,with"."""
    language, stage1 = common.parse_variant(variant, tuple(BASES), ("without", "with"))
    config = BASES[language].get_config().unlock()
    if stage1 == "without":
        config.init.from_run = ""
        config.init.from_weights = (common.BERT,)
        config.carried = ()  # BERT has no stage-1 heads to carry
    config.evaluation.metric = "vqa_accuracy"
    config.evaluation.sources = (common.VQA_VALIDATION,)
    config.evaluation.num_beams = 5
    config.evaluation.max_new_tokens = 10
    return config.lock()
