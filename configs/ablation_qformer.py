"""blip2-jax train --config ablation_qformer:num_queries=64 --workdir runs/queries64

Stage 1 with another Q-Former. The argument sets fields of `QFormerConfig`, joined by
commas: `num_queries` (32 in the paper), `cross_attention_every` (2: every other block
reads the image) and so on. With a language model among them it is stage 2, from the
stage-1 run that `--config.init.from_run` names: `num_queries=64,opt2.7b`.
"""

from ml_collections import ConfigDict

from blip2_jax.configs import (
    common,
    stage1_vitg,
    stage2_flant5xl,
    stage2_flant5xxl,
    stage2_opt2_7b,
    stage2_opt6_7b,
)

BASES = {
    "": stage1_vitg,
    "opt2.7b": stage2_opt2_7b,
    "opt6.7b": stage2_opt6_7b,
    "flant5xl": stage2_flant5xl,
    "flant5xxl": stage2_flant5xxl,
}


def get_config(argument: str = "cross_attention_every=1") -> ConfigDict:
    """Build the configuration; `argument` is e.g. "num_queries=64,opt2.7b"."""
    items = argument.split(",")
    sizes = dict(item.split("=", 1) for item in items if "=" in item)
    other = ",".join(item for item in items if "=" not in item)
    (language,) = common.parse_variant(other, tuple(BASES))
    config = BASES[language].get_config().unlock()
    config.model.overrides.qformer = {name: int(size) for name, size in sizes.items()}
    return config.lock()
