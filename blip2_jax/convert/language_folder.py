"""Hugging Face folders of language models: their sizes, and what they declare."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from blip2_jax.convert.declared_sizes import compare_fields, compare_sizes
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.folder_tokenizer import with_tokens_of
from blip2_jax.convert.huggingface_config import check_tables, their_config
from blip2_jax.convert.language_families.registry import (
    BY_MODEL_TYPE,
    FAMILIES,
    SETTINGS,
)
from blip2_jax.models.presets import PARTS
from blip2_jax.models.sizes import LanguageModelConfig


def language_options(path: str | pathlib.Path) -> dict[str, Any]:
    """Return the sizes of a language model as `config.model.overrides` has them.

    Args:
      path: of a Hugging Face folder, or a name of the hub.

    Raises:
      SourceError: see `language_sizes_of`.
    """
    sizes = language_sizes_of(path)
    kind = next(name for name, part in PARTS.items() if part is type(sizes))
    return {"kind": kind, **dataclasses.asdict(sizes)}


def language_sizes_of(path: str | pathlib.Path) -> LanguageModelConfig:
    """Read the sizes of a language model from a Hugging Face folder.

    Args:
      path: of the folder, or a name of the hub.

    Raises:
      SourceError: the folder declares something that this package does not have, or
        sizes that its arrays do not have.
    """
    source = CheckpointFiles(path)
    return with_tokens_of(declared_sizes(source), source)


def declared_sizes(source: CheckpointFiles) -> LanguageModelConfig:
    """Read the sizes of a language model from the `config.json` of a folder.

    Raises:
      SourceError: see `language_sizes_of`.
    """
    declared, file = source.config, source.path / "config.json"
    model_type = declared.get("model_type")
    if model_type not in BY_MODEL_TYPE:
        content = f"model_type {model_type!r}" if declared else "no config.json"
        raise SourceError(
            f"{source.name}: the folder of a language model has a config.json with "
            f"model_type {', '.join(BY_MODEL_TYPE)}; this folder has {content}"
        )
    family = BY_MODEL_TYPE[model_type]
    check_tables(declared, file, {"": SETTINGS[model_type]})
    theirs = their_config(declared, file, family.config_classes[model_type])
    compare_sizes(theirs, source, family.arrays, family.layers)
    try:
        return family.read(theirs)
    except ValueError as error:
        raise SourceError(f"{file}: {error}") from error


def check_invisible(source: CheckpointFiles, config: LanguageModelConfig) -> None:
    """Compare what a folder declares and no array shows with the sizes of a model.

    Args:
      source: the folder; one without `config.json` declares nothing.
      config: sizes of the model.

    Raises:
      SourceError: a value differs; the message has both.
    """
    names = FAMILIES[config.family].invisible
    if not names or not source.config:
        return
    compare_fields(source, declared_sizes(source), config, names)
