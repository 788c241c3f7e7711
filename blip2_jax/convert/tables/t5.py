"""T5: names of transformers' `T5ForConditionalGeneration`, which LAVIS prefixes."""

from __future__ import annotations

from typing import Any

from blip2_jax.convert.tables.name_table import TRANSPOSE, Rule, linear, norm
from blip2_jax.models.presets import T5Config

SIDES = ("encoder", "decoder")
ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}
MLP = {"wi_0": "gate", "wi_1": "up", "wo": "down"}


def t5_rules(config: T5Config, source: str = "", target: str = "") -> list[Rule]:
    """The model's table; encoder and decoder repeat the token table.

    Args:
      config: sizes.
      source: what stands before the source's names, such as "t5_model.".
      target: what stands before our paths, such as "language_model/".
    """
    tied = tuple(f"{source}{side}.embed_tokens.weight" for side in SIDES)
    depths = (config.depth, config.decoder_depth or config.depth)
    return [
        Rule(f"{source}shared.weight", f"{target}embeddings/token", aliases=tied),
        Rule(f"{source}lm_head.weight", f"{target}head/kernel", TRANSPOSE),
        *(
            rule
            for side, depth in zip(SIDES, depths, strict=True)
            for rule in _stack_rules(f"{source}{side}", f"{target}{side}", depth, side)
        ),
    ]


def _stack_rules(source: str, target: str, depth: int, side: str) -> list[Rule]:
    """Encoder or decoder; only the first block holds the relative bias."""
    layers: dict[str, Any] = {"layers": range(depth), "stack": True, "bias": False}
    theirs, ours = f"{source}.block.{{}}.layer", f"{target}/blocks"
    branches = [("attention", "SelfAttention", ATTENTION)]
    if side == "decoder":
        branches.append(("cross_attention", "EncDecAttention", ATTENTION))
    branches.append(("mlp", "DenseReluDense", MLP))
    bias = f"{source}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rules = [
        Rule(bias, f"{target}/relative_bias"),
        *norm(f"{source}.final_layer_norm", f"{target}/final_norm", bias=False),
    ]
    for index, (name, module, parts) in enumerate(branches):
        branch = f"{theirs}.{index}"
        rules += norm(f"{branch}.layer_norm", f"{ours}/{name}_norm", **layers)
        for part, ours_part in parts.items():
            rules += linear(
                f"{branch}.{module}.{part}", f"{ours}/{name}/{ours_part}", **layers
            )
    return rules
