"""Sizes of a kind of model from its `config.json`: BLIP's captioner and CLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from blip2_jax.convert.declared_sizes import check_image_size, compare_sizes
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.huggingface_config import (
    check_tables,
    expect_model_type,
    their_config,
)
from blip2_jax.convert.tables.huggingface_settings import Settings

C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class DeclaredModel:
    """What the `config.json` of a kind of model is compared with.

    Attributes:
      model_type: value of this setting.
      name: name of the model, for messages.
      config_class: name of its configuration in transformers.
      tables: see `check_tables`.
      arrays: see `compare_sizes`.
      layers: see `compare_sizes`.
      positions: name of the position embeddings of the image encoder.
    """

    model_type: str
    name: str
    config_class: str
    tables: Mapping[str, Settings]
    arrays: Mapping[str, tuple[str, int]]
    layers: Mapping[str, str]
    positions: str


def read_sizes(
    source: CheckpointFiles, model: DeclaredModel, convert: Callable[[Any], C]
) -> C:
    """Read the sizes from the `config.json` of a folder.

    Args:
      source: the folder.
      model: the expected kind of model.
      convert: converts transformers' configuration; may raise ValueError.

    Raises:
      SourceError: there is no such file, it declares something that this package does
        not have, or sizes that the arrays do not have.
    """
    declared, file = source.config, source.path / "config.json"
    expect_model_type(source, model.model_type, model.name)
    check_tables(declared, file, model.tables)
    theirs = their_config(declared, file, model.config_class)
    compare_sizes(theirs, source, model.arrays, model.layers)
    check_image_size(theirs.vision_config, source, model.positions)
    try:
        return convert(theirs)
    except ValueError as error:
        raise SourceError(f"{file}: {error}") from error
