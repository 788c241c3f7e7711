"""Hugging Face's `Blip2ForConditionalGeneration`: the original, renamed.

Their image tower joins the biases of queries, keys and values in one vector; the
part of the keys is zero, for the tower has no such bias.
"""

from __future__ import annotations

import dataclasses

from blip2_jax.convert.lavis_stage2 import stage2_rules
from blip2_jax.convert.names import Array, Arrays, Rule, Transform
from blip2_jax.presets import Blip2Config, ViTConfig

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
    ("Qformer.bert.", "qformer."),
    ("attention.self.", "attention.attention."),
    ("opt_proj.", "language_projection."),
    ("t5_proj.", "language_projection."),
    ("opt_model.", "language_model."),
    ("t5_model.", "language_model."),
)


def huggingface_rules(config: Blip2Config) -> list[Rule]:
    """The table of a complete stage-2 model.

    Raises:
      ValueError: no language model, or an image tower that they do not have.
    """
    vision = config.vision
    if not isinstance(vision, ViTConfig) or vision.key_bias or vision.pre_norm:
        raise ValueError("transformers knows BLIP-2 with the EVA-CLIP tower alone")
    biases = tuple(
        f"visual_encoder/blocks/attention/{part}/bias" for part in ("query", "value")
    )
    joined = Rule(
        "vision_model.encoder.layers.{}.self_attn.qkv.bias", biases, JOINED_BIAS,
        layers=range(vision.depth), stack=True,
    )  # fmt: skip
    kept = [rule for rule in stage2_rules(config) if rule.target not in biases]
    return [joined, *(_renamed(rule) for rule in kept)]


def _renamed(rule: Rule) -> Rule:
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
    zeros: Array = query * 0
    return (query.__array_namespace__().concat([query, zeros, value]),)


JOINED_BIAS = Transform(_cut_bias, _join_bias)
