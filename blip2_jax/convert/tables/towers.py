"""Name tables of the towers: EVA-CLIP, BLIP's ViT, CLIP, OPT and T5.

Each function returns the rules that map the tower's own checkpoint to this package's
parameters. LAVIS and Hugging Face's BLIP-2 keep these names behind a prefix.

Arguments of every table:

  config: sizes of the tower. A released image encoder has one block more than BLIP-2
    uses.
  source: prefix of the checkpoint's names, for example "visual_encoder.".
  target: prefix of the parameter paths, for example "visual_encoder/".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import Any

from blip2_jax.convert.tables.name_table import (
    TRANSPOSE,
    Rule,
    leading_axes,
    linear,
    norm,
    patch_kernel,
    split,
)
from blip2_jax.models.sizes import OPTConfig, T5Config, ViTConfig
from blip2_jax.models.vision.dual_encoder import TextTowerConfig


def _stacked(depth: int) -> dict[str, Any]:
    """Return the arguments of rules whose layers are stacked in one parameter."""
    return {"layers": range(depth), "stack": True}


def eva_rules(config: ViTConfig, source: str = "", target: str = "") -> list[Rule]:
    """Return the table of an EVA-CLIP image encoder.

    One `qkv.weight` holds queries, keys and values; the keys have no bias.
    """
    layers = _stacked(config.depth)
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


def blip_vit_rules(config: ViTConfig, source: str = "", target: str = "") -> list[Rule]:
    """Return the table of BLIP's image encoder, without its final norm.

    It has the names of EVA-CLIP, but one `qkv.bias` for queries, keys and values.
    """
    parts = ("query", "key", "value")
    biases = tuple(f"{target}blocks/attention/{part}/bias" for part in parts)
    rules = [
        rule
        for rule in eva_rules(config, source, target)
        if rule.targets[0] not in biases
    ]
    joined = Rule(
        f"{source}blocks.{{}}.attn.qkv.bias",
        biases,
        split(3, transpose=False),
        **_stacked(config.depth),
    )
    return [*rules, joined]


def clip_rules(config: ViTConfig, source: str = "", target: str = "") -> list[Rule]:
    """Return the table of OpenAI's CLIP ViT-L/14.

    One `in_proj` holds queries, keys and values, biases included.
    """
    layers = _stacked(config.depth)
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


def clip_huggingface_rules(
    config: ViTConfig, target: str = "", source: str = "vision_model."
) -> list[Rule]:
    """Return the table of transformers' image encoder, by default in `CLIPModel`."""
    embeddings = f"{source}embeddings"
    return [
        Rule(f"{embeddings}.class_embedding", f"{target}class_token"),
        Rule(f"{embeddings}.position_embedding.weight", f"{target}position_embedding"),
        Rule(
            f"{embeddings}.patch_embedding.weight",
            f"{target}patch_embedding/kernel",
            patch_kernel(config.patch_size),
        ),
        *norm(f"{source}pre_layrnorm", f"{target}pre_norm"),  # CLIPModel's spelling
        *clip_block_rules(config.depth, source, target),
    ]


def clip_text_rules(config: TextTowerConfig, target: str = "") -> list[Rule]:
    """Return the table of the text encoder in transformers' `CLIPModel`."""
    embeddings = "text_model.embeddings"
    return [
        Rule(f"{embeddings}.token_embedding.weight", f"{target}word"),
        Rule(f"{embeddings}.position_embedding.weight", f"{target}position"),
        *clip_block_rules(config.depth, "text_model.", target),
    ]


def clip_block_rules(depth: int, source: str, target: str) -> list[Rule]:
    """Return the rules of the blocks of transformers' CLIP, image or text."""
    layers = _stacked(depth)
    theirs, ours = f"{source}encoder.layers.{{}}", f"{target}blocks"
    return [
        *norm(f"{theirs}.layer_norm1", f"{ours}/attention_norm", **layers),
        *_self_attention(theirs, ours, layers),
        *norm(f"{theirs}.layer_norm2", f"{ours}/mlp_norm", **layers),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up", **layers),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down", **layers),
    ]


def _self_attention(theirs: str, ours: str, layers: dict[str, Any]) -> list[Rule]:
    """Return the rules of `self_attn` as transformers names it in CLIP and OPT."""
    parts = {"q": "query", "k": "key", "v": "value", "out": "output"}
    return [
        rule
        for part, name in parts.items()
        for rule in linear(
            f"{theirs}.self_attn.{part}_proj", f"{ours}/attention/{name}", **layers
        )
    ]


def opt_rules(config: OPTConfig, source: str = "", target: str = "") -> list[Rule]:
    """Return the table of transformers' `OPTForCausalLM`.

    A tied output head is an alias of the token table.
    """
    theirs, ours = f"{source}model.decoder", f"{target}embeddings"
    token, head = f"{theirs}.embed_tokens.weight", f"{source}lm_head.weight"
    rules = [
        Rule(token, f"{ours}/token", aliases=(head,) if config.tied_head else ()),
        Rule(f"{theirs}.embed_positions.weight", f"{ours}/position"),
        *_opt_block_rules(config, f"{theirs}.layers.{{}}", f"{target}blocks"),
    ]
    if config.embedding_width != config.width:
        rules += [
            Rule(f"{theirs}.{name}.weight", f"{ours}/{name}/kernel", TRANSPOSE)
            for name in ("project_in", "project_out")
        ]
    if config.pre_norm:
        rules += norm(f"{theirs}.final_layer_norm", f"{target}final_norm")
    if not config.tied_head:
        rules.append(Rule(head, f"{target}head/kernel", TRANSPOSE))
    return rules


def _opt_block_rules(config: OPTConfig, theirs: str, ours: str) -> list[Rule]:
    layers = _stacked(config.depth)
    return [
        *_self_attention(theirs, ours, layers),
        *norm(f"{theirs}.self_attn_layer_norm", f"{ours}/attention_norm", **layers),
        *linear(f"{theirs}.fc1", f"{ours}/mlp/up", **layers),
        *linear(f"{theirs}.fc2", f"{ours}/mlp/down", **layers),
        *norm(f"{theirs}.final_layer_norm", f"{ours}/mlp_norm", **layers),
    ]


T5_SIDES = ("encoder", "decoder")
T5_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}
T5_MLP = {"wi_0": "gate", "wi_1": "up", "wo": "down"}


def t5_rules(config: T5Config, source: str = "", target: str = "") -> list[Rule]:
    """Return the table of transformers' `T5ForConditionalGeneration`.

    The token tables of encoder and decoder are aliases of the shared one.
    """
    aliases = tuple(f"{source}{side}.embed_tokens.weight" for side in T5_SIDES)
    depths = (config.depth, config.decoder_depth or config.depth)
    return [
        Rule(f"{source}shared.weight", f"{target}embeddings/token", aliases=aliases),
        Rule(f"{source}lm_head.weight", f"{target}head/kernel", TRANSPOSE),
        *(
            rule
            for side, depth in zip(T5_SIDES, depths, strict=True)
            for rule in _t5_stack_rules(
                f"{source}{side}", f"{target}{side}", depth, side
            )
        ),
    ]


def _t5_stack_rules(source: str, target: str, depth: int, side: str) -> list[Rule]:
    """Return the rules of the encoder or the decoder.

    Only the first block holds the relative position bias.
    """
    layers = _stacked(depth) | {"bias": False}
    theirs, ours = f"{source}.block.{{}}.layer", f"{target}/blocks"
    branches = [("attention", "SelfAttention", T5_ATTENTION)]
    if side == "decoder":
        branches.append(("cross_attention", "EncDecAttention", T5_ATTENTION))
    branches.append(("mlp", "DenseReluDense", T5_MLP))
    bias = f"{source}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rules = [
        Rule(bias, f"{target}/relative_bias"),
        *norm(f"{source}.final_layer_norm", f"{target}/final_norm", bias=False),
    ]
    for index, (name, module, parts) in enumerate(branches):
        branch = f"{theirs}.{index}"
        rules += norm(f"{branch}.layer_norm", f"{ours}/{name}_norm", **layers)
        for part, our_part in parts.items():
            rules += linear(
                f"{branch}.{module}.{part}", f"{ours}/{name}/{our_part}", **layers
            )
    return rules


def tie_missing_t5_head(rules: Sequence[Rule], names: Container[str]) -> list[Rule]:
    """Read T5's head from the token table if the checkpoint has no head.

    transformers ties the two in a T5 that was not initialised from a v1.1 checkpoint,
    and then saves one of their names.
    """
    (table,) = (r for r in rules if r.targets == ("language_model/embeddings/token",))
    (head,) = (r for r in rules if r.targets == ("language_model/head/kernel",))
    tables = (table.sources[0], *table.aliases)
    if head.sources[0] not in names:
        head = dataclasses.replace(head, source=tables[0], aliases=tables[1:])
    elif not any(name in names for name in tables):
        table = dataclasses.replace(table, source=head.sources[0])
    tied = {rule.targets: rule for rule in (table, head)}
    return [tied.get(rule.targets, rule) for rule in rules]
