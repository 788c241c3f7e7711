"""OPT: names of transformers' `OPTForCausalLM`, which LAVIS keeps behind a prefix."""

from __future__ import annotations

from typing import Any

from blip2_jax.convert.tables.name_table import TRANSPOSE, Rule, linear, norm
from blip2_jax.models.presets import OPTConfig


def opt_rules(config: OPTConfig, source: str = "", target: str = "") -> list[Rule]:
    """The model's table; the head is the token table under a second name.

    Args:
      config: sizes.
      source: what stands before the source's names, such as "opt_model.".
      target: what stands before our paths, such as "language_model/".
    """
    theirs, ours = f"{source}model.decoder", f"{target}embeddings"
    token, tied = f"{theirs}.embed_tokens.weight", (f"{source}lm_head.weight",)
    rules = [
        Rule(token, f"{ours}/token", aliases=tied),
        Rule(f"{theirs}.embed_positions.weight", f"{ours}/position"),
        *_block_rules(config, f"{theirs}.layers.{{}}", f"{target}blocks"),
    ]
    if config.embedding_width != config.width:
        rules += [
            Rule(f"{theirs}.{way}.weight", f"{ours}/{way}/kernel", TRANSPOSE)
            for way in ("project_in", "project_out")
        ]
    if config.pre_norm:
        rules += norm(f"{theirs}.final_layer_norm", f"{target}final_norm")
    return rules


def _block_rules(config: OPTConfig, theirs: str, ours: str) -> list[Rule]:
    layers: dict[str, Any] = {"layers": range(config.depth), "stack": True}
    parts = {"q": "query", "k": "key", "v": "value", "out": "output"}
    attention = [
        rule
        for part, name in parts.items()
        for rule in linear(
            f"{theirs}.self_attn.{part}_proj", f"{ours}/attention/{name}", **layers
        )
    ]
    return [
        *attention,
        *norm(f"{theirs}.self_attn_layer_norm", f"{ours}/attention_norm", **layers),
        *linear(f"{theirs}.fc1", f"{ours}/mlp/up", **layers),
        *linear(f"{theirs}.fc2", f"{ours}/mlp/down", **layers),
        *norm(f"{theirs}.final_layer_norm", f"{ours}/mlp_norm", **layers),
    ]
