"""The description of a family of language models for conversion."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from blip2_jax.convert.tables.huggingface_settings import Settings
from blip2_jax.convert.tables.name_table import Rule


def unchanged(rules: Sequence[Rule], names: Container[str]) -> list[Rule]:
    """Return a table for a checkpoint that has all names."""
    return list(rules)


@dataclasses.dataclass(frozen=True)
class LanguageFamily:
    """How checkpoints of a family are recognised, checked, read and written.

    Attributes:
      title: name in messages.
      pattern: see `detect.KINDS`.
      rules: (config, source, target) -> name table; see `tables.towers`.
      settings: what is made of the settings of a `config.json`, by `model_type`.
      config_classes: transformers' configuration class, by `model_type`.
      arrays: setting: an array that has this size, and the axis.
      layers: setting: pattern of an array of one layer, with the layer's number.
      read: transformers' configuration -> sizes; raises ValueError for a variant that
        this package does not have.
      write: (sizes, rows of the token tables, end token) -> transformers' settings.
      adapt: (rules, names of the checkpoint) -> rules that read such a checkpoint.
      leftovers: patterns of arrays that no rule reads.
      invisible: fields of the sizes that no array shows. Those that the `config.json`
        beside the weights declares must be the model's.
    """

    title: str
    pattern: str
    rules: Callable[[Any, str, str], list[Rule]]
    settings: Mapping[str, Settings]
    config_classes: Mapping[str, str]
    arrays: Mapping[str, tuple[str, int]]
    layers: Mapping[str, str]
    read: Callable[[Any], Any]
    write: Callable[[Any, int, int], dict[str, Any]]
    adapt: Callable[[Sequence[Rule], Container[str]], list[Rule]] = unchanged
    leftovers: tuple[str, ...] = ()
    invisible: tuple[str, ...] = ()
