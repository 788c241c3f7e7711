"""The families of language models that can be converted."""

from __future__ import annotations

from typing import Any

from blip2_jax.convert.language_families import llama, opt, phi3, t5
from blip2_jax.convert.language_families.family import LanguageFamily
from blip2_jax.convert.tables.huggingface_settings import Settings
from blip2_jax.convert.tables.name_table import Rule
from blip2_jax.models.sizes import LanguageModelConfig

# By `family` of the config class.
FAMILIES: dict[str, LanguageFamily] = {
    "opt": opt.FAMILY,
    "t5": t5.FAMILY,
    "llama": llama.FAMILY,
    "phi3": phi3.FAMILY,
}
BY_MODEL_TYPE: dict[str, LanguageFamily] = {
    model_type: family
    for family in FAMILIES.values()
    for model_type in family.config_classes
}
SETTINGS: dict[str, Settings] = {
    model_type: family.settings[model_type]
    for model_type, family in BY_MODEL_TYPE.items()
}


def language_model_rules(
    config: LanguageModelConfig, source: str = "", target: str = "language_model/"
) -> list[Rule]:
    """Return the name table of a language model; see `tables.towers`."""
    return FAMILIES[config.family].rules(config, source, target)


def language_sizes(theirs: Any) -> LanguageModelConfig:
    """Convert transformers' configuration of a language model.

    Raises:
      ValueError: this package does not have the variant.
    """
    return BY_MODEL_TYPE[theirs.model_type].read(theirs)
