"""Sizes of a Hugging Face BLIP-2 folder, from its `config.json`.

Every declared setting is used, refused by name, or listed as without effect
(`tables.huggingface_settings`). Declared sizes are compared with the shapes of the
arrays before anything is built from them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from blip2_jax.convert.declared_sizes import (
    check_declared_sizes,
)
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.folder_tokenizer import with_tokens_of
from blip2_jax.convert.language_families.registry import SETTINGS, language_sizes
from blip2_jax.convert.tables import huggingface_settings as settings
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import (
    LanguageModelConfig,
    QFormerConfig,
    Sizes,
    ViTConfig,
)

SAME_ACTIVATION = {"gelu_pytorch_tanh": "gelu_new"}  # another name of the function
P = TypeVar("P", bound=Sizes)
C = TypeVar("C")


def huggingface_sizes(source: CheckpointFiles) -> Blip2Config:
    """Read the sizes from the `config.json` of a Hugging Face BLIP-2 folder.

    Raises:
      SourceError: there is no such file, it declares something that this package does
        not have, or sizes that the arrays do not have.
    """
    declared, file = source.config, source.path / "config.json"
    expect_model_type(source, "blip-2", "Hugging Face's BLIP-2")
    retrieval = "itm_head.weight" in source
    check_settings(declared, file, with_language_model=not retrieval)
    theirs = their_config(declared, file, "Blip2Config")
    check_declared_sizes(theirs, source, with_language_model=not retrieval)
    return blip2_sizes(theirs, source, retrieval)


def expect_model_type(source: CheckpointFiles, model_type: str, model: str) -> None:
    """Check that the `config.json` of a folder is that of a kind of model.

    Args:
      source: the folder.
      model_type: expected value of the setting.
      model: name of the model, for the message.

    Raises:
      SourceError: there is no such file, or it is that of another model.
    """
    declared = source.config.get("model_type")
    if declared != model_type:
        content = f"model_type {declared!r}" if source.config else "no config.json"
        raise SourceError(
            f"{source.name}: a folder of {model} has a config.json with model_type "
            f"{model_type!r}; this folder has {content}"
        )


def check_settings(
    declared: Mapping[str, Any],
    file: pathlib.Path,
    with_language_model: bool,
    sections: Mapping[str, settings.Settings] = settings.SECTIONS,
) -> None:
    """Check that this package follows every declared setting.

    Args:
      declared: content of `config.json`.
      file: where it is, for messages.
      with_language_model: the model uses `text_config`.
      sections: tables of the other sections; see `check_tables`.

    Raises:
      SourceError: a setting is refused; the message names it and its value.
    """
    tables = dict(sections)
    if with_language_model:
        model_type = _section(declared, "text_config", file).get("model_type", "opt")
        if model_type not in SETTINGS:
            raise SourceError(
                f"{file}: the language model is {model_type!r}; supported are "
                f"{', '.join(SETTINGS)}"
            )
        tables["text_config"] = SETTINGS[model_type]
    check_tables(declared, file, tables)


def check_tables(
    declared: Mapping[str, Any],
    file: pathlib.Path,
    tables: Mapping[str, settings.Settings],
) -> None:
    """Check the settings of every section of a `config.json`.

    Args:
      declared: content of the file.
      file: where it is, for messages.
      tables: by name of the section; "" is the top level.

    Raises:
      SourceError: a setting is refused; the message names it and its value.
    """
    for section, table in tables.items():
        values = _section(declared, section, file) if section else declared
        if problem := table.problem(values):
            where = f"{section}." if section else ""
            raise SourceError(f"{file}: {where}{problem}")


def _section(
    declared: Mapping[str, Any], name: str, file: pathlib.Path
) -> Mapping[str, Any]:
    """Return a part of `config.json`; {} if it is not declared."""
    section = declared.get(name)
    if section is not None and not isinstance(section, Mapping):
        raise SourceError(f"{file}: {name} is {section!r}; expected an object {{...}}")
    return section or {}


def their_config(declared: Mapping[str, Any], file: pathlib.Path, name: str) -> Any:
    """Return transformers' object, which fills in the settings that are not declared.

    Args:
      declared: content of `config.json`.
      file: where it is, for messages.
      name: of the class in transformers.

    Raises:
      SourceError: transformers refuses a value.
    """
    import transformers  # slow to import

    try:
        return getattr(transformers, name).from_dict(dict(declared))
    except Exception as error:  # its validation raises many classes
        message = " ".join(str(error).split())
        raise SourceError(f"{file} is refused by transformers: {message}") from error


def blip2_sizes(
    theirs: Any, source: CheckpointFiles, retrieval: bool = False
) -> Blip2Config:
    """Convert transformers' `Blip2Config` or `InstructBlipConfig`.

    Args:
      theirs: their object.
      source: the folder.
      retrieval: the folder holds a `Blip2ForImageTextRetrieval`.

    Raises:
      SourceError: a value is impossible, or this package does not have the variant.
    """
    try:
        return _sizes(theirs, source, retrieval)
    except SourceError:
        raise
    except ValueError as error:
        raise SourceError(f"{source.path / 'config.json'}: {error}") from error


def _sizes(theirs: Any, source: CheckpointFiles, retrieval: bool) -> Blip2Config:
    vision, qformer = theirs.vision_config, theirs.qformer_config
    # InstructBLIP declares no width of a contrastive space that it does not have.
    projection = getattr(theirs, "image_text_hidden_size", QFormerConfig.projection_dim)
    if qformer.attention_probs_dropout_prob != qformer.hidden_dropout_prob:
        raise ValueError(
            "qformer_config.attention_probs_dropout_prob is "
            f"{qformer.attention_probs_dropout_prob}, hidden_dropout_prob "
            f"{qformer.hidden_dropout_prob}; this package has one rate for both"
        )
    return Blip2Config(
        vision=vision_sizes(vision, key_bias=_has_key_bias(source, vision)),
        qformer=make_part(
            QFormerConfig,
            "qformer_config",
            width=qformer.hidden_size,
            depth=qformer.num_hidden_layers,
            heads=qformer.num_attention_heads,
            mlp_dim=qformer.intermediate_size,
            cross_attention_every=qformer.cross_attention_frequency,
            num_queries=theirs.num_query_tokens,
            vocab_size=qformer.vocab_size,
            max_positions=qformer.max_position_embeddings,
            projection_dim=projection,
            layer_norm_eps=qformer.layer_norm_eps,
            dropout=qformer.hidden_dropout_prob,
            activation=qformer.hidden_act,
        ),
        language_model=None if retrieval else _text_sizes(theirs.text_config, source),
        ln_vision_eps=vision.layer_norm_eps,
    )


def vision_sizes(theirs: Any, **sizes: Any) -> ViTConfig:
    """Convert the settings of an image encoder of transformers.

    Args:
      theirs: transformers' configuration of an image encoder of BLIP-2, BLIP, ...
      **sizes: fields of `ViTConfig` that follow from the kind of model.

    Raises:
      ValueError: a value is impossible.
    """
    return make_part(
        ViTConfig,
        "vision_config",
        width=theirs.hidden_size,
        depth=theirs.num_hidden_layers,
        heads=theirs.num_attention_heads,
        mlp_dim=theirs.intermediate_size,
        image_size=theirs.image_size,
        patch_size=theirs.patch_size,
        activation=SAME_ACTIVATION.get(theirs.hidden_act, theirs.hidden_act),
        layer_norm_eps=theirs.layer_norm_eps,
        **sizes,
    )


def make_part(kind: type[P], section: str, **sizes: Any) -> P:
    """Build the sizes of a part; errors name its section of `config.json`."""
    try:
        return kind(**sizes)
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from error


def _text_sizes(theirs: Any, source: CheckpointFiles) -> LanguageModelConfig:
    """Convert `text_config`; errors name it."""
    try:
        return with_tokens_of(language_sizes(theirs), source)
    except ValueError as error:
        raise ValueError(f"text_config: {error}") from error


def _has_key_bias(source: CheckpointFiles, vision: Any) -> bool:
    """Return True if the joined bias of any layer is not zero for the keys.

    The released models have no key bias and store zeros.
    """
    for layer in range(vision.num_hidden_layers):
        name = f"vision_model.encoder.layers.{layer}.self_attn.qkv.bias"
        if name in source and np.any(np.split(source[name], 3)[1]):
            return True
    return False
