"""Hugging Face's BLIP-2: the original, renamed.

`Blip2ForConditionalGeneration` is stage 2; `Blip2ForImageTextRetrieval` is stage 1
without the head that writes captions and without the temperature. Their image tower
joins the biases of queries, keys and values in one vector; the part of the keys is
zero in the released models, whose tower has no such bias.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from blip2_jax.convert.tables.lavis import qformer_text_rules, shared_rules
from blip2_jax.convert.tables.lavis_stage2 import stage2_rules
from blip2_jax.convert.tables.name_table import Arrays, Rule, Transform, linear, split
from blip2_jax.models.presets import Blip2Config, ViTConfig

# Our paths that `Blip2ForImageTextRetrieval` has no place for.
RETRIEVAL_LACKS = (r"qformer/head/.*", r"temperature")

# What the original says, and what they say; in this order, wherever it stands.
RENAMED = (
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
    ("opt_proj.", "language_projection."),
    ("t5_proj.", "language_projection."),
    ("opt_model.", "language_model."),
    ("t5_model.", "language_model."),
)


def huggingface_rules(config: Blip2Config) -> list[Rule]:
    """The table of a complete model, of stage 2 if it has a language model.

    Raises:
      ValueError: an image tower that they do not have.
    """
    vision = config.vision
    if not isinstance(vision, ViTConfig) or vision.pre_norm or not vision.patch_bias:
        raise ValueError("transformers knows BLIP-2 with the EVA-CLIP tower alone")
    original = stage2_rules if config.language_model else _retrieval_rules
    kept = [rule for rule in original(config) if not _is_bias(rule)]
    return [_joined_bias(vision), *(renamed(rule) for rule in kept)]


def _retrieval_rules(config: Blip2Config) -> list[Rule]:
    """The original's names of what `Blip2ForImageTextRetrieval` holds."""
    text = [
        dataclasses.replace(rule, aliases=())
        for rule in qformer_text_rules(config.qformer)
        if not rule.targets[0].startswith("qformer/head/")
    ]
    return [
        *shared_rules(config),
        *text,
        *linear("vision_proj", "vision_projection"),
        *linear("text_proj", "text_projection"),
        *linear("itm_head", "itm_head"),
    ]


BIAS = "visual_encoder/blocks/attention/{}/bias"


def _is_bias(rule: Rule) -> bool:
    return rule.targets in ((BIAS.format("query"),), (BIAS.format("value"),))


def _joined_bias(vision: ViTConfig) -> Rule:
    parts = ("query", "key", "value") if vision.key_bias else ("query", "value")
    layers: dict[str, Any] = {"layers": range(vision.depth), "stack": True}
    return Rule(
        "vision_model.encoder.layers.{}.self_attn.qkv.bias",
        tuple(BIAS.format(part) for part in parts),
        split(3, transpose=False) if vision.key_bias else JOINED_BIAS,
        **layers,
    )


def renamed(rule: Rule) -> Rule:
    """A rule of the original with transformers' names."""
    (source,) = rule.sources
    aliases = tuple(_rename(alias) for alias in rule.aliases)
    return dataclasses.replace(rule, source=_rename(source), aliases=aliases)


def _rename(name: str) -> str:
    for theirs, new in RENAMED:
        name = name.replace(theirs, new)
    return name


def _cut_bias(arrays: Arrays) -> Arrays:
    (joined,) = arrays
    width = joined.shape[0] // 3
    return joined[:width], joined[2 * width :]


def _join_bias(arrays: Arrays) -> Arrays:
    query, value = arrays
    library = query.__array_namespace__()
    return (library.concat([query, library.zeros_like(query), value]),)


JOINED_BIAS = Transform(_cut_bias, _join_bias)
