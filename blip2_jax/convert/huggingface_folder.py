"""Hugging Face's BLIP-2 folders: their name table, and how to open them.

`Blip2ForConditionalGeneration` is stage 2. `Blip2ForImageTextRetrieval` is stage 1
without the language-model head and without the temperature. Most names are LAVIS's,
renamed. transformers joins the biases of queries, keys and values of the image encoder
in one vector; the keys' part is zero in the released models, which have no key bias.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from blip2_jax.convert.converted_arrays import ConvertedArrays, Part, part_at_size
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles
from blip2_jax.convert.folder_tokenizer import own_tokenizer
from blip2_jax.convert.huggingface_config import huggingface_sizes
from blip2_jax.convert.huggingface_processor import check_image_processor
from blip2_jax.convert.language_families.registry import FAMILIES
from blip2_jax.convert.model_source import TEXT_BRANCH, ModelSource, expected_shapes
from blip2_jax.convert.tables.lavis import (
    lavis_prefix,
    qformer_reading_rules,
    shared_rules,
    stage2_rules,
)
from blip2_jax.convert.tables.name_table import Arrays, Rule, Transform, linear, split
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import ViTConfig

BUFFERS = (r".*position_ids",)  # patterns of arrays that hold no parameter
DEFAULT_IMAGE_SIZE = 224  # of transformers' `Blip2VisionConfig`
# Patterns of the parameters that `Blip2ForImageTextRetrieval` lacks.
RETRIEVAL_LACKS = (r"qformer/head/.*", r"temperature")

Renames = tuple[tuple[str, str], ...]
# (LAVIS's, transformers'): replaced in this order, anywhere in a name.
RENAMES: Renames = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj", "vision_model.embeddings.patch_embedding"),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
    (".attn.", ".self_attn."),
    (".self_attn.proj.", ".self_attn.projection."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    ("ln_vision.", "vision_model.post_layernorm."),
    ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    ("Qformer.bert.embeddings.", "embeddings."),
    ("Qformer.bert.", "qformer."),
    ("attention.self.", "attention.attention."),
    ("vision_proj.", "vision_projection."),
    ("text_proj.", "text_projection."),
    *((f"{lavis_prefix(name)}_proj.", "language_projection.") for name in FAMILIES),
    *((f"{lavis_prefix(name)}_model.", "language_model.") for name in FAMILIES),
)


def open_huggingface(
    source: CheckpointFiles,
    config: Blip2Config | None = None,
    *,
    extra: tuple[Part, ...] = (),
) -> ModelSource:
    """Open a Hugging Face folder as a model, its tokenizer included.

    Args:
      source: the files of the folder.
      config: sizes; None reads its `config.json`.
      extra: further parts, such as a text branch.

    Raises:
      SourceError: weights and sizes do not fit, or this package has no such model or
        no such preprocessing of images.
    """
    config = config or huggingface_sizes(source)
    check_image_processor(source, DEFAULT_IMAGE_SIZE)
    arrays = ConvertedArrays([huggingface_part(source, config), *extra])
    absent = RETRIEVAL_LACKS if config.language_model is None else ()
    arrays.check(expected_shapes(config), absent, TEXT_BRANCH if extra else ())
    tokenizer = own_tokenizer(source)
    return ModelSource(
        config,
        arrays,
        "huggingface",
        absent=tuple(
            pattern
            for pattern in absent
            if not any(re.fullmatch(pattern, path) for path in arrays)
        ),
        precision=arrays.precision,
        qformer_tokenizer=tokenizer if config.language_model is None else "",
        language_tokenizer=tokenizer if config.language_model else "",
    )


def huggingface_part(source: CheckpointFiles, config: Blip2Config) -> Part:
    """Return the folder with its table; positions fit the image size of `config`."""
    return folder_part(source, config, huggingface_rules(config))


def folder_part(
    source: CheckpointFiles, config: Blip2Config, rules: Sequence[Rule]
) -> Part:
    """Return a folder with a table of complete models.

    The table is adapted to the folder: to names that it lacks, and positions to the
    image size of `config`.
    """
    if config.language_model is not None:
        rules = FAMILIES[config.language_model.family].adapt(rules, source)
    return part_at_size(source, rules, config.vision, BUFFERS)


def huggingface_rules(config: Blip2Config) -> list[Rule]:
    """Return the table of a complete model, of stage 2 if it has a language model.

    Raises:
      ValueError: transformers has no such image encoder.
    """
    lavis_rules = stage2_rules if config.language_model else _retrieval_rules
    return renamed_rules(config, lavis_rules(config))


def renamed_rules(
    config: Blip2Config, lavis_rules: Sequence[Rule], renames: Renames = RENAMES
) -> list[Rule]:
    """Return LAVIS's table of a complete model with transformers' names.

    Args:
      config: sizes.
      lavis_rules: the table.
      renames: see `RENAMES`.

    Raises:
      ValueError: transformers has no such image encoder, or nothing but a Q-Former
        between it and the language model.
    """
    if config.projector is not None:
        raise ValueError("transformers has no projector in place of the Q-Former")
    vision = config.vision
    if (
        not isinstance(vision, ViTConfig)
        or (vision.pre_norm or not vision.patch_bias)
        or vision.extensions()
    ):
        raise ValueError("transformers has BLIP-2 with EVA-CLIP's image encoder only")
    rules = [
        renamed_rule(rule, renames) for rule in lavis_rules if not _is_qkv_bias(rule)
    ]
    return [_qkv_bias_rule(vision), *rules]


def _retrieval_rules(config: Blip2Config) -> list[Rule]:
    """Return LAVIS's rules of the parameters in `Blip2ForImageTextRetrieval`."""
    return [
        *shared_rules(config),
        *qformer_reading_rules(config.qformer),
        *linear("vision_proj", "vision_projection"),
        *linear("text_proj", "text_projection"),
        *linear("itm_head", "itm_head"),
    ]


QKV_BIAS = "visual_encoder/blocks/attention/{}/bias"


def _is_qkv_bias(rule: Rule) -> bool:
    return rule.targets in ((QKV_BIAS.format("query"),), (QKV_BIAS.format("value"),))


def _qkv_bias_rule(vision: ViTConfig) -> Rule:
    parts = ("query", "key", "value") if vision.key_bias else ("query", "value")
    layers: dict[str, Any] = {"layers": range(vision.depth), "stack": True}
    return Rule(
        "vision_model.encoder.layers.{}.self_attn.qkv.bias",
        tuple(QKV_BIAS.format(part) for part in parts),
        split(3, transpose=False) if vision.key_bias else JOINED_BIAS,
        **layers,
    )


def renamed_rule(rule: Rule, renames: Renames = RENAMES) -> Rule:
    """Return a rule of LAVIS's table with transformers' names."""
    (source,) = rule.sources
    aliases = tuple(_rename(alias, renames) for alias in rule.aliases)
    return dataclasses.replace(rule, source=_rename(source, renames), aliases=aliases)


def _rename(name: str, renames: Renames) -> str:
    for lavis, huggingface in renames:
        name = name.replace(lavis, huggingface)
    return name


def _cut_bias(arrays: Arrays) -> Arrays:
    """Split [query, key, value] biases and drop the keys'."""
    (joined,) = arrays
    width = joined.shape[0] // 3
    return joined[:width], joined[2 * width :]


def _join_bias(arrays: Arrays) -> Arrays:
    """Join query and value biases with zeros for the keys."""
    query, value = arrays
    library = query.__array_namespace__()
    return (library.concat([query, library.zeros_like(query), value]),)


JOINED_BIAS = Transform(_cut_bias, _join_bias)
