"""The unimodal models that stages 1 and 2 start from, as parts of a conversion."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from blip2_jax.convert.arrays import Part
from blip2_jax.convert.detect import VISION, expect
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.positions import POSITIONS, interpolate_positions, resizing
from blip2_jax.convert.tables import bert, clip, eva
from blip2_jax.convert.tables.lavis_stage2 import language_model_rules
from blip2_jax.convert.tables.name_table import Arrays, Rule, Transform
from blip2_jax.models.presets import (
    FeaturesConfig,
    LanguageModelConfig,
    OPTConfig,
    QFormerConfig,
    ViTConfig,
)

# What the files hold beside the blocks that BLIP-2 uses: norms and heads behind the
# last block, text towers.
EVA_LEFTOVERS = (r"(fc_)?norm\..*", r"(lm_)?head\..*", r"mask_token")
CLIP_LEFTOVERS = (r"ln_post\..*", r"proj")
CLIP_HUGGINGFACE_LEFTOVERS = (
    r"text_model\..*",
    r"(visual|text)_projection\.weight",
    r"logit_scale",
    r"vision_model\.post_layernorm\..*",
    r"vision_model\.embeddings\.position_ids",
)
OUTSIDE_VISUAL = r"(?!visual\.).*"  # of a file that holds the text tower too
OLD_T5_BIAS = (
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)


def vision_part(source: CheckpointFiles, config: ViTConfig | FeaturesConfig) -> Part:
    """An image encoder; its positions are resized where `config` has another size.

    Raises:
      SourceError: it is no image encoder, or not of the kind of `config`.
    """
    if not isinstance(config, ViTConfig):
        raise SourceError(
            f"{source.path}: this model reads features and has no image encoder"
        )
    kind = expect(source, VISION, "the image encoder")
    if config.pre_norm == (kind == "eva"):
        wanted = "CLIP" if config.pre_norm else "EVA-CLIP"
        raise SourceError(f"{source.path} is no {wanted} image encoder")
    table = _clip_huggingface if kind == "clip_huggingface" else _visual
    rules, leftovers = table(source, config)
    return resized_part(source, rules, config, leftovers)


Table = tuple[list[Rule], tuple[str, ...]]  # rules and leftovers


def _visual(source: CheckpointFiles, config: ViTConfig) -> Table:
    """EVA-CLIP's or OpenAI's names, alone or beside a text tower."""
    table, blocks, rest = (
        (clip.clip_rules, r"transformer\.resblocks", CLIP_LEFTOVERS)
        if config.pre_norm
        else (eva.eva_rules, r"blocks", EVA_LEFTOVERS)
    )
    prefix = "visual." if any(name.startswith("visual.") for name in source) else ""
    inside = (*rest, rf"{blocks}\.{config.depth}\..*")
    leftovers = tuple(re.escape(prefix) + pattern for pattern in inside)
    leftovers += (OUTSIDE_VISUAL,) if prefix else ()
    return table(config, prefix, "visual_encoder/"), leftovers


def _clip_huggingface(source: CheckpointFiles, config: ViTConfig) -> Table:
    """transformers' names; an image tower alone keeps them, too."""
    del source  # its names are always the same
    last = rf"vision_model\.encoder\.layers\.{config.depth}\..*"
    rules = clip.clip_huggingface_rules(config, "visual_encoder/")
    return rules, (*CLIP_HUGGINGFACE_LEFTOVERS, last)


def resized_part(
    source: CheckpointFiles,
    rules: Sequence[Rule],
    config: ViTConfig | FeaturesConfig,
    leftovers: tuple[str, ...],
) -> Part:
    """A part whose positions are brought to the image size of `config`, if they differ.

    EVA's are resized with aligned centres, CLIP's with aligned corners.
    """
    if not isinstance(config, ViTConfig):
        return Part(source, rules, leftovers)
    table, notes = [], []
    for rule in rules:
        if rule.targets == (POSITIONS,) and rule.sources[0] in source:
            tokens = source.shape(rule.sources[0])[-2]
            if tokens != config.num_tokens:
                rule = _resized(rule, config)
                notes.append(resizing(tokens, config.num_tokens))
        table.append(rule)
    return Part(source, table, leftovers, tuple(notes))


def _resized(rule: Rule, config: ViTConfig) -> Rule:
    def to_ours(arrays: Arrays) -> Arrays:
        (positions,) = rule.transform.to_ours(arrays)
        if not isinstance(positions, np.ndarray):  # shapes are asked for
            shape = (config.num_tokens, positions.shape[-1])
            return (jnp.zeros(shape, positions.dtype),)
        return (
            interpolate_positions(
                positions, config.num_tokens, align_corners=config.pre_norm
            ),
        )

    def to_source(arrays: Arrays) -> Arrays:
        raise ValueError("resized positions do not become what they were")

    return Rule(rule.source, rule.target, Transform(to_ours, to_source))


def tied_head(rules: Sequence[Rule], source: CheckpointFiles) -> list[Rule]:
    """The table of a source that holds no head of T5, for it equals the token table.

    So transformers saves a T5 that was made there and not read from a v1.1 file.
    """
    head, table = "lm_head.weight", "shared.weight"
    return [
        dataclasses.replace(rule, source=rule.sources[0].replace(head, table))
        if rule.targets == ("language_model/head/kernel",)
        and rule.sources[0] not in source
        else rule
        for rule in rules
    ]


def language_part(source: CheckpointFiles, config: LanguageModelConfig) -> Part:
    """A language model.

    Raises:
      SourceError: it is none, or one of the other family.
    """
    family = "opt" if isinstance(config, OPTConfig) else "t5"
    expect(source, [family], "this model's language model")
    if family == "t5":
        rules = tied_head(language_model_rules(config), source)
        return Part(source, rules, (OLD_T5_BIAS,))
    rules = language_model_rules(config)
    if not any(name.startswith("model.") for name in source):
        rules = [_without_model(rule) for rule in rules]
    return Part(source, rules, ())


def _without_model(rule: Rule) -> Rule:
    """The older files of OPT leave the first word of every name out."""
    return dataclasses.replace(rule, source=rule.sources[0].removeprefix("model."))


def bert_part(
    source: CheckpointFiles, config: QFormerConfig, *, queries: bool = True
) -> Part:
    """A BERT, as a Q-Former's start or (`queries` False) as its text branch alone."""
    expect(source, ["bert"], "a Q-Former's start")
    rules = bert.bert_rules(config, source, queries=queries)
    leftovers = bert.LEFTOVERS if queries else (r"bert\..*", *bert.LEFTOVERS)
    return Part(source, rules, leftovers)
