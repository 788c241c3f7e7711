"""LAVIS checkpoints of stage 2: `Blip2OPT` and `Blip2T5`."""

from __future__ import annotations

from blip2_jax.convert.tables.lavis import shared_rules
from blip2_jax.convert.tables.name_table import Rule, linear
from blip2_jax.convert.tables.opt import opt_rules
from blip2_jax.convert.tables.t5 import t5_rules
from blip2_jax.models.presets import Blip2Config, LanguageModelConfig, OPTConfig


def stage2_rules(config: Blip2Config) -> list[Rule]:
    """The whole model: towers, query branch, projection, language model.

    Raises:
      ValueError: the configuration has no language model.
    """
    if config.language_model is None:
        raise ValueError("a stage-2 table needs config.language_model")
    family = "opt" if isinstance(config.language_model, OPTConfig) else "t5"
    return [
        *shared_rules(config),
        *linear(f"{family}_proj", "language_projection"),
        *language_model_rules(config.language_model, f"{family}_model."),
    ]


def language_model_rules(
    config: LanguageModelConfig, source: str = "", target: str = "language_model/"
) -> list[Rule]:
    """The frozen language model alone, as transformers names it behind `source`."""
    if isinstance(config, OPTConfig):
        return opt_rules(config, source, target)
    return t5_rules(config, source, target)
