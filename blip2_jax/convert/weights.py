"""Weights of any kind as parameters, for a model whose sizes are known.

A checkpoint provides the parameters that it has: a whole BLIP-2, an image encoder, a
language model or a BERT. The caller checks that none is missing.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from blip2_jax.convert.bert_folder import bert_part, bert_words
from blip2_jax.convert.converted_arrays import ConvertedArrays, Part
from blip2_jax.convert.detect import DESCRIPTIONS, LANGUAGE, VISION, kind_of
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.huggingface_folder import huggingface_part
from blip2_jax.convert.instructblip_folder import instructblip_part
from blip2_jax.convert.lavis_file import lavis_part
from blip2_jax.convert.minigpt4_file import minigpt4_part
from blip2_jax.convert.model_source import is_text_branch
from blip2_jax.convert.native_folder import FolderArrays, is_native_folder
from blip2_jax.convert.positions import arrays_at_size
from blip2_jax.convert.towers import language_part, vision_part
from blip2_jax.convert.vocabulary import arrays_at_vocabulary
from blip2_jax.data import hub
from blip2_jax.models.presets import Blip2Config

Arrays = Mapping[str, np.ndarray]
# Word tables of LAVIS and Hugging Face, in which [DEC] has a row.
WORD_TABLES = (
    "Qformer.bert.embeddings.word_embeddings.weight",
    "embeddings.word_embeddings.weight",
)


def open_arrays(path: str | pathlib.Path, config: Blip2Config) -> Arrays:
    """Open weights as parameters by path, read on access.

    Args:
      path: a file, a folder or a name of the hub with weights of any kind in
        `detect.KINDS`, or of a folder that a conversion wrote.
      config: sizes of the model. Position embeddings are fitted to its image size, and
        spare rows of token tables are left out.

    Raises:
      SourceError: the path holds no weights, or weights of another kind of model.
    """
    return arrays_at_vocabulary(_open_arrays(path, config), config)


def _open_arrays(path: str | pathlib.Path, config: Blip2Config) -> Arrays:
    folder = hub.local_path(path)
    if is_native_folder(folder):
        return arrays_at_size(FolderArrays(folder), config.vision)
    source = CheckpointFiles(path)
    kind = kind_of(source)
    if kind == "blip2_jax":
        return arrays_at_size(source, config.vision)
    return ConvertedArrays([part_of(source, kind, config)])


def part_of(source: CheckpointFiles, kind: str, config: Blip2Config) -> Part:
    """Return a checkpoint with the table that reads it.

    Args:
      source: the checkpoint.
      kind: from `detect.kind_of`.
      config: sizes of the model.

    Raises:
      SourceError: the checkpoint does not fit the model.
    """
    if kind in VISION:
        return vision_part(source, config.vision)
    if kind == "blip":
        raise SourceError(f"{source.name} is {DESCRIPTIONS[kind]}, no part of a BLIP-2")
    if kind == "bert":
        return bert_part(source, config.qformer)
    if kind in LANGUAGE:
        if config.language_model is None:
            raise SourceError(
                f"{source.name} is {DESCRIPTIONS[kind]}, but this model has no "
                "language model"
            )
        return language_part(source, config.language_model)
    if "itm_head.weight" in source:  # a stage-1 checkpoint, whatever the model's stage
        config = dataclasses.replace(config, language_model=None)
    make_part = {
        "lavis": lavis_part,
        "huggingface": huggingface_part,
        "instructblip": instructblip_part,
        "minigpt4": minigpt4_part,
    }[kind]
    return make_part(source, config)


def with_text_branch_sizes(
    config: Blip2Config, path: str | pathlib.Path
) -> Blip2Config:
    """Return the sizes of a stage-2 model with the vocabulary of a text branch.

    The model itself has no token table. Its `config.json` may declare another size than
    the text branch has: released folders do not count [DEC].

    Args:
      config: sizes of the model.
      path: a stage-1 checkpoint or a BERT.
    """
    source = CheckpointFiles(path)
    if kind_of(source) == "bert":
        rows = bert_words(source) + 1
    else:
        tables = (source.shape(name)[0] for name in WORD_TABLES if name in source)
        rows = next(tables, config.qformer.vocab_size)
    qformer = dataclasses.replace(config.qformer, vocab_size=rows)
    return dataclasses.replace(config, qformer=qformer)


def text_branch_part(path: str | pathlib.Path, config: Blip2Config) -> Part:
    """Return the Q-Former's text branch of a stage-1 checkpoint or of a BERT.

    Released stage-2 files lack it. Models whose Q-Former reads questions need it, and
    so does further training in stage 1.

    Raises:
      SourceError: the checkpoint has no text branch.
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
