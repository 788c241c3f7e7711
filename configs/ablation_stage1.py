"""python launch/train.py --config configs/ablation_stage1.py --workdir runs/fig5

Stage 2 without representation learning before it (figure 5): the Q-Former begins as
BERT-base, not as a stage-1 run. Zero-shot VQAv2 is evaluated on the way, as the figure
shows it. `ablation_stage1.py:flant5xl,with` is the other curve.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import fine_tunes, recipes


def get_config(words: str = "opt2.7b") -> ConfigDict:
    """The run's configuration."""
    language, stage1 = recipes.parse_variant(
        words, tuple(recipes.LANGUAGE), ("without", "with")
    )
    config = recipes.stage2(language)
    if stage1 == "without":
        config.init.from_run, config.init.from_weights = "", (recipes.BERT,)
        config.carried = ()  # BERT has no heads of stage 1
    config.evaluation.metric = "vqa_accuracy"
    config.evaluation.sources = (fine_tunes.VQA_VALIDATION,)
    config.evaluation.num_beams, config.evaluation.max_new_tokens = 5, 10
    return config.lock()
