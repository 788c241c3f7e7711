"""CLIP ViT-L/14: names of OpenAI's checkpoint and of LAVIS.

One `in_proj` holds queries, keys and values, biases included.
"""

from __future__ import annotations

from typing import Any

from blip2_jax.convert.tables.name_table import Rule, linear, norm, patch_kernel, split
from blip2_jax.models.presets import ViTConfig


def clip_rules(config: ViTConfig, source: str = "", target: str = "") -> list[Rule]:
    """The tower's table.

    Args:
      config: sizes; the released file has one block more than is used.
      source: what stands before the source's names, such as "visual_encoder.".
      target: what stands before our paths, such as "visual_encoder/".
    """
    layers: dict[str, Any] = {"layers": range(config.depth), "stack": True}
    theirs, ours = f"{source}transformer.resblocks.{{}}", f"{target}blocks"
    attention = f"{ours}/attention"
    joined = lambda leaf: tuple(
        f"{attention}/{part}/{leaf}" for part in ("query", "key", "value")
    )
    weight, bias = (f"{theirs}.attn.in_proj_{leaf}" for leaf in ("weight", "bias"))
    return [
        Rule(f"{source}class_embedding", f"{target}class_token"),
        Rule(f"{source}positional_embedding", f"{target}position_embedding"),
        Rule(
            f"{source}conv1.weight",
            f"{target}patch_embedding/kernel",
            patch_kernel(config.patch_size),
        ),
        *norm(f"{source}ln_pre", f"{target}pre_norm"),
        *norm(f"{theirs}.ln_1", f"{ours}/attention_norm", **layers),
        Rule(weight, joined("kernel"), split(3, transpose=True), **layers),
        Rule(bias, joined("bias"), split(3, transpose=False), **layers),
        *linear(f"{theirs}.attn.out_proj", f"{attention}/output", **layers),
        *norm(f"{theirs}.ln_2", f"{ours}/mlp_norm", **layers),
        *linear(f"{theirs}.mlp.c_fc", f"{ours}/mlp/up", **layers),
        *linear(f"{theirs}.mlp.c_proj", f"{ours}/mlp/down", **layers),
    ]


def clip_huggingface_rules(config: ViTConfig, target: str = "") -> list[Rule]:
    """The tower as transformers' `CLIPModel` names it."""
    layers: dict[str, Any] = {"layers": range(config.depth), "stack": True}
    theirs, ours = "vision_model.encoder.layers.{}", f"{target}blocks"
    embeddings = "vision_model.embeddings"
    parts = {"q": "query", "k": "key", "v": "value", "out": "output"}
    return [
        Rule(f"{embeddings}.class_embedding", f"{target}class_token"),
        Rule(f"{embeddings}.position_embedding.weight", f"{target}position_embedding"),
        Rule(
            f"{embeddings}.patch_embedding.weight",
            f"{target}patch_embedding/kernel",
            patch_kernel(config.patch_size),
        ),
        *norm("vision_model.pre_layrnorm", f"{target}pre_norm"),  # their spelling
        *norm(f"{theirs}.layer_norm1", f"{ours}/attention_norm", **layers),
        *(
            rule
            for part, name in parts.items()
            for rule in linear(
                f"{theirs}.self_attn.{part}_proj", f"{ours}/attention/{name}", **layers
            )
        ),
        *norm(f"{theirs}.layer_norm2", f"{ours}/mlp_norm", **layers),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up", **layers),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down", **layers),
    ]
