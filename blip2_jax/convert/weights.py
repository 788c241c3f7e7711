"""Weights of any kind as our arrays, for a model whose sizes are known.

A source gives what it has of the model: a whole BLIP-2, an image encoder, a language
model, a BERT. Who asks says what is missing.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from blip2_jax.convert import native_folder
from blip2_jax.convert.arrays import ConvertedArrays, Part
from blip2_jax.convert.detect import DESCRIPTIONS, LANGUAGE, VISION, kind_of
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.huggingface_folder import huggingface_part
from blip2_jax.convert.lavis_file import lavis_part
from blip2_jax.convert.model_source import is_text_branch
from blip2_jax.convert.positions import at_size
from blip2_jax.convert.towers import bert_part, language_part, vision_part
from blip2_jax.models.presets import Blip2Config

Arrays = Mapping[str, np.ndarray]


def open_arrays(path: str | pathlib.Path, config: Blip2Config) -> Arrays:
    """Our arrays by path, read when asked for.

    Args:
      path: a file or folder of any kind that `detect.KINDS` lists, or a folder that a
        conversion wrote.
      config: sizes of the model that they are for.

    Raises:
      SourceError: nothing readable there, or of another kind of model.
    """
    path = pathlib.Path(path)
    if native_folder.is_folder(path):
        return at_size(native_folder.FolderArrays(path), config.vision)
    source = CheckpointFiles(path)
    kind = kind_of(source)
    if kind == "blip2_jax":
        return at_size(source, config.vision)
    return ConvertedArrays([part_of(source, kind, config)])


def part_of(source: CheckpointFiles, kind: str, config: Blip2Config) -> Part:
    """The source with the table to read it by.

    Args:
      kind: from `detect.kind_of`.

    Raises:
      SourceError: a language model for a model that has none.
    """
    if kind in VISION:
        return vision_part(source, config.vision)
    if kind == "bert":
        return bert_part(source, config.qformer)
    if kind in LANGUAGE:
        if config.language_model is None:
            raise SourceError(
                f"{source.path} is {DESCRIPTIONS[kind]}, but this model has no "
                "language model"
            )
        return language_part(source, config.language_model)
    if "itm_head.weight" in source:  # of stage 1, for whatever model
        config = dataclasses.replace(config, language_model=None)
    whole = lavis_part if kind == "lavis" else huggingface_part
    return whole(source, config)


def text_branch_part(path: str | pathlib.Path, config: Blip2Config) -> Part:
    """The Q-Former's text branch of a stage-1 file or of a BERT.

    A released stage-2 file lacks it; models that read questions in the Q-Former, or
    that go on in stage 1, need it.

    Raises:
      SourceError: the source is neither.
    """
    source = CheckpointFiles(path)
    kind = kind_of(source)
    if kind == "bert":
        return bert_part(source, config.qformer, queries=False)
    if "itm_head.weight" not in source:
        raise SourceError(
            f"{path} is {DESCRIPTIONS[kind]} without a text branch: name a stage-1 "
            "file or a BERT"
        )
    part = part_of(source, kind, config)
    rules = [rule for rule in part.rules if is_text_branch(rule.targets[0])]
    return Part(source, rules, (r".*",))
