"""LAVIS checkpoints: the Q-Former and the heads of stage 1, image towers included.

The language models of stage 2 keep the names of their own project, behind a prefix.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from blip2_jax.convert.tables.clip import clip_rules
from blip2_jax.convert.tables.eva import eva_rules
from blip2_jax.convert.tables.name_table import Rule, leading_axes, linear, norm
from blip2_jax.models.presets import Blip2Config, QFormerConfig, ViTConfig

# A buffer 0, 1, 2, ... that older checkpoints carry; nothing is read from it.
POSITION_IDS = "Qformer.bert.embeddings.position_ids"


def stage1_rules(config: Blip2Config) -> list[Rule]:
    """All of `Blip2Qformer`, the image tower included where the model has one."""
    return [
        *shared_rules(config),
        *qformer_text_rules(config.qformer),
        *linear("vision_proj", "vision_projection"),
        *linear("text_proj", "text_projection"),
        *linear("itm_head", "itm_head"),
        Rule("temp", "temperature"),
    ]


def shared_rules(config: Blip2Config) -> list[Rule]:
    """What both stages hold: image tower, its norm, queries and their branch."""
    return [
        *vision_rules(config),
        *norm("ln_vision", "ln_vision"),
        Rule("query_tokens", "query_tokens", leading_axes(1)),
        *qformer_query_rules(config.qformer),
    ]


def vision_rules(config: Blip2Config) -> list[Rule]:
    """The image tower: CLIP's names where it norms before its blocks, else EVA's."""
    if not isinstance(config.vision, ViTConfig):
        return []
    rules = clip_rules if config.vision.pre_norm else eva_rules
    return rules(config.vision, "visual_encoder.", "visual_encoder/")


def qformer_query_rules(
    config: QFormerConfig, source: str = "Qformer.bert."
) -> list[Rule]:
    """The Q-Former's parameters that a pass of queries alone uses."""
    layers = range(config.depth)
    readers = range(0, config.depth, config.cross_attention_every)
    theirs, ours = f"{source}encoder.layer.{{}}", "qformer/layer_{}"
    return [
        *norm(f"{source}embeddings.LayerNorm", "qformer/embeddings/norm"),
        *_attention(f"{theirs}.attention", f"{ours}/attention", layers),
        *_attention(f"{theirs}.crossattention", f"{ours}/cross_attention", readers),
        *_feed_forward(theirs, f"{ours}/query_mlp", "_query", layers),
    ]


def qformer_text_rules(config: QFormerConfig, source: str = "Qformer.") -> list[Rule]:
    """The Q-Former's text branch: embeddings, feed-forward, language-model head."""
    embeddings, head = f"{source}bert.embeddings", f"{source}cls.predictions"
    word = f"{embeddings}.word_embeddings.weight"
    tied: dict[str, Any] = {"aliases": (f"{head}.decoder.weight",)}
    layers, layer = range(config.depth), f"{source}bert.encoder.layer.{{}}"
    return [
        Rule(word, "qformer/embeddings/word", **tied),
        Rule(f"{embeddings}.position_embeddings.weight", "qformer/embeddings/position"),
        *_feed_forward(layer, "qformer/layer_{}/text_mlp", "", layers),
        *linear(f"{head}.transform.dense", "qformer/head/dense"),
        *norm(f"{head}.transform.LayerNorm", "qformer/head/norm"),
        Rule(f"{head}.bias", "qformer/head/bias", aliases=(f"{head}.decoder.bias",)),
    ]


def position_ids(config: QFormerConfig) -> dict[str, np.ndarray]:
    """The buffer that a complete LAVIS state dict also holds."""
    return {POSITION_IDS: np.arange(config.max_positions, dtype=np.int64)[None]}


def _attention(source: str, target: str, layers: range) -> list[Rule]:
    parts = [("self.query", "query"), ("self.key", "key"), ("self.value", "value")]
    return [
        rule
        for theirs, ours in [*parts, ("output.dense", "output")]
        for rule in linear(f"{source}.{theirs}", f"{target}/{ours}", layers=layers)
    ] + norm(f"{source}.output.LayerNorm", f"{target}_norm", layers=layers)


def _feed_forward(source: str, target: str, suffix: str, layers: range) -> list[Rule]:
    output = f"{source}.output{suffix}"
    return [
        *linear(f"{source}.intermediate{suffix}.dense", f"{target}/up", layers=layers),
        *linear(f"{output}.dense", f"{target}/down", layers=layers),
        *norm(f"{output}.LayerNorm", f"{target}_norm", layers=layers),
    ]
