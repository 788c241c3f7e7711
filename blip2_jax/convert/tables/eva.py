"""EVA-CLIP ViT-g/14: names of its own checkpoint and of LAVIS.

One `qkv.weight` holds queries, keys and values; the keys have no bias.
"""

from __future__ import annotations

from typing import Any

from blip2_jax.convert.tables.name_table import (
    Rule,
    leading_axes,
    linear,
    norm,
    patch_kernel,
    split,
)
from blip2_jax.models.presets import ViTConfig


def eva_rules(config: ViTConfig, source: str = "", target: str = "") -> list[Rule]:
    """The tower's table.

    Args:
      config: sizes; the released file has one block more than is used.
      source: what stands before the source's names, such as "visual_encoder.".
      target: what stands before our paths, such as "visual_encoder/".
    """
    layers: dict[str, Any] = {"layers": range(config.depth), "stack": True}
    theirs, ours = f"{source}blocks.{{}}", f"{target}blocks"
    attention = f"{ours}/attention"
    kernels = tuple(f"{attention}/{part}/kernel" for part in ("query", "key", "value"))
    return [
        Rule(f"{source}cls_token", f"{target}class_token", leading_axes(2)),
        Rule(f"{source}pos_embed", f"{target}position_embedding", leading_axes(1)),
        Rule(
            f"{source}patch_embed.proj.weight",
            f"{target}patch_embedding/kernel",
            patch_kernel(config.patch_size),
        ),
        Rule(f"{source}patch_embed.proj.bias", f"{target}patch_embedding/bias"),
        *norm(f"{theirs}.norm1", f"{ours}/attention_norm", **layers),
        Rule(f"{theirs}.attn.qkv.weight", kernels, split(3, transpose=True), **layers),
        Rule(f"{theirs}.attn.q_bias", f"{attention}/query/bias", **layers),
        Rule(f"{theirs}.attn.v_bias", f"{attention}/value/bias", **layers),
        *linear(f"{theirs}.attn.proj", f"{attention}/output", **layers),
        *norm(f"{theirs}.norm2", f"{ours}/mlp_norm", **layers),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up", **layers),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down", **layers),
    ]
