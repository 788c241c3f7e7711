"""Name tables of LAVIS checkpoints: stage 1 and stage 2.

LAVIS keeps the names of the image encoders and language models (`tables.towers`)
behind a prefix.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from blip2_jax.convert.language_families.registry import language_model_rules
from blip2_jax.convert.tables.name_table import Rule, leading_axes, linear, norm
from blip2_jax.convert.tables.towers import clip_rules, eva_rules
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import QFormerConfig, ViTConfig

# Prefix of a family's projection and language model, if it is not the family's name.
_PREFIXES = {"llama": "llm"}

# A buffer 0, 1, 2, ... in checkpoints of older versions; it holds no parameter.
POSITION_IDS = "Qformer.bert.embeddings.position_ids"


def stage1_rules(config: Blip2Config) -> list[Rule]:
    """Return the table of `Blip2Qformer`, image encoder included if there is one."""
    return [
        *shared_rules(config),
        *qformer_text_rules(config.qformer),
        *linear("vision_proj", "vision_projection"),
        *linear("text_proj", "text_projection"),
        *linear("itm_head", "itm_head"),
        Rule("temp", "temperature"),
    ]


def stage2_rules(config: Blip2Config, reads_text: bool = False) -> list[Rule]:
    """Return the table of `Blip2OPT`, `Blip2T5` or `Blip2VicunaInstruct`.

    The language model is included. Other families have the names that LAVIS would give
    them.

    Args:
      config: sizes.
      reads_text: the Q-Former reads text, as in `Blip2T5Instruct`.

    Raises:
      ValueError: the configuration has no language model.
    """
    if config.language_model is None:
        raise ValueError("a stage-2 table needs config.language_model")
    prefix = lavis_prefix(config.language_model.family)
    return [
        *shared_rules(config),
        *(qformer_reading_rules(config.qformer) if reads_text else []),
        *linear(f"{prefix}_proj", "language_projection"),
        *language_model_rules(config.language_model, f"{prefix}_model."),
    ]


def lavis_prefix(family: str) -> str:
    """Return what LAVIS puts before `_proj` and `_model` for a language model."""
    return _PREFIXES.get(family, family)


def shared_rules(config: Blip2Config) -> list[Rule]:
    """Return the rules of both stages: image encoder, its norm, query branch."""
    return [
        *vision_rules(config),
        *norm("ln_vision", "ln_vision"),
        Rule("query_tokens", "query_tokens", leading_axes(1)),
        *qformer_query_rules(config.qformer),
    ]


def vision_rules(config: Blip2Config) -> list[Rule]:
    """Return the rules of the image encoder: CLIP with `pre_norm`, else EVA-CLIP."""
    if not isinstance(config.vision, ViTConfig):
        return []
    rules = clip_rules if config.vision.pre_norm else eva_rules
    return rules(config.vision, "visual_encoder.", "visual_encoder/")


def qformer_query_rules(
    config: QFormerConfig, source: str = "Qformer.bert."
) -> list[Rule]:
    """Return the rules of the Q-Former parameters that the query pass uses."""
    layers = range(config.depth)
    cross_layers = range(0, config.depth, config.cross_attention_every)
    theirs, ours = f"{source}encoder.layer.{{}}", "qformer/layer_{}"
    return [
        *norm(f"{source}embeddings.LayerNorm", "qformer/embeddings/norm"),
        *attention_rules(f"{theirs}.attention", f"{ours}/attention", layers),
        *attention_rules(
            f"{theirs}.crossattention", f"{ours}/cross_attention", cross_layers
        ),
        *feed_forward_rules(theirs, f"{ours}/query_mlp", "_query", layers),
    ]


def qformer_text_rules(config: QFormerConfig, source: str = "Qformer.") -> list[Rule]:
    """Return the rules of the text branch: embeddings, feed-forward, LM head."""
    layers, layer = range(config.depth), f"{source}bert.encoder.layer.{{}}"
    return [
        *vocabulary_rules(source, "qformer/"),
        *feed_forward_rules(layer, "qformer/layer_{}/text_mlp", "", layers),
    ]


def qformer_reading_rules(config: QFormerConfig) -> list[Rule]:
    """Return the rules of a text branch that reads and does not write: no LM head."""
    return [
        dataclasses.replace(rule, aliases=())
        for rule in qformer_text_rules(config)
        if not rule.targets[0].startswith("qformer/head/")
    ]


def vocabulary_rules(source: str, target: str) -> list[Rule]:
    """Return the rules of BERT's token and position tables and of its LM head."""
    embeddings, head = f"{source}bert.embeddings", f"{source}cls.predictions"
    word = f"{embeddings}.word_embeddings.weight"
    return [
        Rule(word, f"{target}embeddings/word", aliases=(f"{head}.decoder.weight",)),
        Rule(
            f"{embeddings}.position_embeddings.weight",
            f"{target}embeddings/position",
        ),
        *linear(f"{head}.transform.dense", f"{target}head/dense"),
        *norm(f"{head}.transform.LayerNorm", f"{target}head/norm"),
        Rule(f"{head}.bias", f"{target}head/bias", aliases=(f"{head}.decoder.bias",)),
    ]


def position_ids(config: QFormerConfig) -> dict[str, np.ndarray]:
    """Return the position buffer that a complete LAVIS state dict holds."""
    return {POSITION_IDS: np.arange(config.max_positions, dtype=np.int64)[None]}


def attention_rules(
    source: str, target: str, layers: range, stack: bool = False
) -> list[Rule]:
    """Return the rules of an attention of BERT, its output and norm included."""
    where: dict[str, Any] = {"layers": layers, "stack": stack}
    parts = [("self.query", "query"), ("self.key", "key"), ("self.value", "value")]
    return [
        rule
        for theirs, ours in [*parts, ("output.dense", "output")]
        for rule in linear(f"{source}.{theirs}", f"{target}/{ours}", **where)
    ] + norm(f"{source}.output.LayerNorm", f"{target}_norm", **where)


def feed_forward_rules(
    source: str, target: str, suffix: str, layers: range, stack: bool = False
) -> list[Rule]:
    """Return the rules of a feed-forward of BERT, its norm included."""
    where: dict[str, Any] = {"layers": layers, "stack": stack}
    output = f"{source}.output{suffix}"
    return [
        *linear(f"{source}.intermediate{suffix}.dense", f"{target}/up", **where),
        *linear(f"{output}.dense", f"{target}/down", **where),
        *norm(f"{output}.LayerNorm", f"{target}_norm", **where),
    ]
