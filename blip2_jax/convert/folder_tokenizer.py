"""The tokenizer in a Hugging Face folder, and what it says about a language model."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from blip2_jax.convert.files.checkpoint_files import CheckpointFiles
from blip2_jax.data import hub
from blip2_jax.data.text.tokenizer_files import VOCABULARIES
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.models.sizes import LanguageModelConfig


def own_tokenizer(source: CheckpointFiles) -> str:
    """Return what to record for the tokenizer in a folder; "" if it has none."""
    return source.spec if _has_tokenizer(source.path) else ""


def tokenizer_beside(source: CheckpointFiles, name: str) -> str:
    """Return what to record for the tokenizer in a sub-folder; "" if it has none."""
    folder = source.path / name
    return hub.cached_name(str(folder)) if _has_tokenizer(folder) else ""


def _has_tokenizer(folder: pathlib.Path) -> bool:
    # An incomplete vocabulary counts: it is an error when the tokenizer is opened.
    return any((folder / names[0]).exists() for names in VOCABULARIES)


def with_tokens_of(
    sizes: LanguageModelConfig, source: CheckpointFiles
) -> LanguageModelConfig:
    """Replace the first token of a text, its end and the padding in declared sizes.

    Those of the tokenizer in the folder count, if there is one: a `config.json` may
    declare a BOS that no text begins with.

    Raises:
      ValueError: the tokenizer cannot be loaded.
    """
    spec = own_tokenizer(source)
    if sizes.end_id is None or not spec:
        return sizes
    tokenizer = load_tokenizer(spec, language_model=True)
    tokens: dict[str, Any] = {
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.end_id,
        "pad_id": tokenizer.pad_id,
    }
    return dataclasses.replace(sizes, **tokens)
