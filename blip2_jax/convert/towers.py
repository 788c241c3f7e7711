"""Checkpoints of the unimodal models that BLIP-2 starts from, as parts of a model."""

from __future__ import annotations

import re

from blip2_jax.convert.clip import clip_encoder_sizes
from blip2_jax.convert.converted_arrays import Part, part_at_size
from blip2_jax.convert.declared_sizes import compare_fields
from blip2_jax.convert.detect import DECLARED, VISION, expect_kind
from blip2_jax.convert.encoder_folder import encoder_part
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.language_families.registry import (
    FAMILIES,
    language_model_rules,
)
from blip2_jax.convert.language_folder import check_invisible
from blip2_jax.convert.tables import towers
from blip2_jax.convert.tables.encoders import encoder_prefix
from blip2_jax.convert.tables.name_table import Rule
from blip2_jax.models.sizes import (
    FeaturesConfig,
    LanguageModelConfig,
    ViTConfig,
)

# Patterns of arrays that BLIP-2 does not use: norms and heads behind the last block,
# text towers.
EVA_LEFTOVERS = (r"(fc_)?norm\..*", r"(lm_)?head\..*", r"mask_token")
CLIP_LEFTOVERS = (r"ln_post\..*", r"proj")
CLIP_HUGGINGFACE_LEFTOVERS = (
    r"text_model\..*",
    r"(visual|text)_projection\.weight",
    r"logit_scale",
    r"(vision_model\.)?post_layernorm\..*",
    r"(vision_model\.)?embeddings\.position_ids",
    r"classifier\..*",
)
# Sizes that no array of a CLIP shows.
CLIP_INVISIBLE = ("heads", "activation", "layer_norm_eps", "statistics")
OUTSIDE_VISUAL = r"(?!visual\.).*"  # all but the image encoder of a CLIP


def vision_part(source: CheckpointFiles, config: ViTConfig | FeaturesConfig) -> Part:
    """Return an image encoder; its positions fit the image size of `config`.

    Raises:
      SourceError: the checkpoint is no image encoder, or not that of `config`.
    """
    if not isinstance(config, ViTConfig):
        raise SourceError(
            f"{source.name}: this model reads features and has no image encoder"
        )
    kind = expect_kind(source, VISION, "the image encoder")
    if VISION[kind] != config.family:
        raise SourceError(f"{source.name} is no {config.family} image encoder")
    if kind in DECLARED:
        return encoder_part(source, config)
    leftovers: tuple[str, ...]
    if kind == "clip_huggingface":
        if source.config:
            declared = clip_encoder_sizes(source)
            compare_fields(source, declared, config, CLIP_INVISIBLE)
        prefix = encoder_prefix(source)
        unused_block = rf"(vision_model\.)?encoder\.layers\.{config.depth}\..*"
        rules = towers.clip_huggingface_rules(config, "visual_encoder/", prefix)
        leftovers = (*CLIP_HUGGINGFACE_LEFTOVERS, unused_block)
    else:
        rules, leftovers = _visual_rules(source, config)
    return part_at_size(source, rules, config, leftovers)


def _visual_rules(
    source: CheckpointFiles, config: ViTConfig
) -> tuple[list[Rule], tuple[str, ...]]:
    """Return rules and leftovers of EVA-CLIP's or OpenAI's names.

    A checkpoint that holds a text tower too has the prefix "visual.".
    """
    unused: tuple[str, ...]
    if config.pre_norm:
        table, blocks, unused = (
            towers.clip_rules,
            r"transformer\.resblocks",
            CLIP_LEFTOVERS,
        )
    else:
        table, blocks, unused = towers.eva_rules, "blocks", EVA_LEFTOVERS
    prefix = "visual." if any(name.startswith("visual.") for name in source) else ""
    patterns = (*unused, rf"{blocks}\.{config.depth}\..*")
    leftovers = tuple(re.escape(prefix) + pattern for pattern in patterns)
    if prefix:
        leftovers += (OUTSIDE_VISUAL,)
    return table(config, prefix, "visual_encoder/"), leftovers


def language_part(source: CheckpointFiles, config: LanguageModelConfig) -> Part:
    """Return a language model.

    Raises:
      SourceError: the checkpoint is no language model, or not that of `config`.
    """
    expect_kind(source, [config.family], "this model's language model")
    check_invisible(source, config)
    family = FAMILIES[config.family]
    rules = family.adapt(language_model_rules(config), source)
    return Part(source, rules, family.leftovers)
