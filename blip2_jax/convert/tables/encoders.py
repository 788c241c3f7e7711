"""Name tables of transformers' SigLIP and DINOv2; see `tables.towers`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from blip2_jax.convert.tables.name_table import (
    Rule,
    leading_axes,
    linear,
    norm,
    patch_kernel,
    split,
)
from blip2_jax.convert.tables.towers import clip_block_rules
from blip2_jax.models.sizes import ViTConfig

VISION_MODEL = "vision_model."
# Patterns of arrays that are not used; the norm only where the model has none.
SIGLIP_LEFTOVERS = (
    r"text_model\..*",
    r"logit_(scale|bias)",
    r"(vision_model\.)?head\..*",  # pools the tokens
    r"(vision_model\.)?post_layernorm\..*",
    r"(vision_model\.)?embeddings\.position_ids",
    r"classifier\..*",
)
DINOV2_LEFTOVERS = (
    r"(dinov2\w*\.)?embeddings\.mask_token",
    r"(dinov2\w*\.)?layernorm\..*",
    r"classifier\..*",
)
# Prefixes of the image encoder's names in models that hold more, such as `SiglipModel`
# and `Dinov2ForImageClassification`.
PREFIXES = (VISION_MODEL, "dinov2.", "dinov2_with_registers.")


def encoder_prefix(names: Iterable[str]) -> str:
    """Return the prefix of the image encoder's names, "" for an encoder alone."""
    first = {name.partition(".")[0] + "." for name in names}
    return next((prefix for prefix in PREFIXES if prefix in first), "")


def siglip_rules(config: ViTConfig, source: str = "", target: str = "") -> list[Rule]:
    """Return the table of transformers' `SiglipVisionModel`."""
    embeddings = f"{source}embeddings"
    return [
        *_patch_rules(f"{embeddings}.patch_embedding", target, config.patch_size),
        Rule(f"{embeddings}.position_embedding.weight", f"{target}position_embedding"),
        *clip_block_rules(config.depth, source, target),
        *_final_norm_rules(f"{source}post_layernorm", config, target),
    ]


def dinov2_rules(config: ViTConfig, source: str = "", target: str = "") -> list[Rule]:
    """Return the table of transformers' `Dinov2Model`, with or without registers."""
    layers: dict[str, Any] = {"layers": range(config.depth), "stack": True}
    theirs, ours = f"{source}encoder.layer.{{}}", f"{target}blocks"
    embeddings = f"{source}embeddings"
    rules = [
        Rule(f"{embeddings}.cls_token", f"{target}class_token", leading_axes(2)),
        Rule(
            f"{embeddings}.position_embeddings",
            f"{target}position_embedding",
            leading_axes(1),
        ),
        *_patch_rules(
            f"{embeddings}.patch_embeddings.projection", target, config.patch_size
        ),
        *_final_norm_rules(f"{source}layernorm", config, target),
        *norm(f"{theirs}.norm1", f"{ours}/attention_norm", **layers),
        *linear(
            f"{theirs}.attention.output.dense", f"{ours}/attention/output", **layers
        ),
        *norm(f"{theirs}.norm2", f"{ours}/mlp_norm", **layers),
    ]
    if config.num_registers:
        name = "register_tokens"
        rules.append(Rule(f"{embeddings}.{name}", f"{target}{name}", leading_axes(1)))
    for part in ("query", "key", "value"):
        rules += linear(
            f"{theirs}.attention.attention.{part}", f"{ours}/attention/{part}", **layers
        )
    for number, branch in enumerate(("attention", "mlp"), start=1):
        scale = f"{theirs}.layer_scale{number}.lambda1"
        rules.append(Rule(scale, f"{ours}/{branch}_scale/scale", **layers))
    mlp_rules = _gated_mlp_rules if config.gated_mlp else _mlp_rules
    return [*rules, *mlp_rules(f"{theirs}.mlp", f"{ours}/mlp", layers)]


def _mlp_rules(theirs: str, ours: str, layers: dict[str, Any]) -> list[Rule]:
    up, down = f"{theirs}.fc1", f"{theirs}.fc2"
    return [
        *linear(up, f"{ours}/up", **layers),
        *linear(down, f"{ours}/down", **layers),
    ]


def _gated_mlp_rules(theirs: str, ours: str, layers: dict[str, Any]) -> list[Rule]:
    """Return the rules of SwiGLU; `weights_in` holds the rows of `gate`, then `up`."""
    kernels, biases = (
        tuple(f"{ours}/{part}/{leaf}" for part in ("gate", "up"))
        for leaf in ("kernel", "bias")
    )
    source = f"{theirs}.weights_in"
    return [
        Rule(f"{source}.weight", kernels, split(2, transpose=True), **layers),
        Rule(f"{source}.bias", biases, split(2, transpose=False), **layers),
        *linear(f"{theirs}.weights_out", f"{ours}/down", **layers),
    ]


def _final_norm_rules(source: str, config: ViTConfig, target: str) -> list[Rule]:
    return norm(source, f"{target}final_norm") if config.final_norm else []


def _patch_rules(source: str, target: str, patch_size: int) -> list[Rule]:
    """Return the rules of the convolution that embeds patches."""
    kernel = f"{target}patch_embedding/kernel"
    return [
        Rule(f"{source}.weight", kernel, patch_kernel(patch_size)),
        Rule(f"{source}.bias", f"{target}patch_embedding/bias"),
    ]
