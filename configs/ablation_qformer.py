"""python launch/train.py --config configs/ablation_qformer.py --workdir runs/every

Stage 1 with another Q-Former: `num_queries` (the paper: 32), `cross_attention_every`
(2: every other block reads the image) or any other number of `QFormerConfig`, several
joined by commas. With a language model among them it is stage 2, from the stage-1 run
that `--config.init.from_run` names: `ablation_qformer.py:num_queries=64,opt2.7b`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import recipes


def get_config(words: str = "cross_attention_every=1") -> ConfigDict:
    """The run's configuration."""
    items = words.split(",")
    sizes = dict(item.split("=", 1) for item in items if "=" in item)
    others = ",".join(item for item in items if "=" not in item)
    (language,) = recipes.parse_variant(others, ("", *recipes.LANGUAGE))
    config = recipes.stage2(language) if language else recipes.stage1()
    config.model.overrides.qformer = {name: int(n) for name, n in sizes.items()}
    return config.lock()
