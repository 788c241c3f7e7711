"""OPT: transformers' `OPTForCausalLM`."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from typing import Any

from blip2_jax.convert.language_families.family import LanguageFamily
from blip2_jax.convert.tables import huggingface_settings as settings
from blip2_jax.convert.tables.name_table import Rule
from blip2_jax.convert.tables.towers import opt_rules
from blip2_jax.models.sizes import OPTConfig


def read(theirs: Any) -> OPTConfig:
    """Convert transformers' `OPTConfig`."""
    embed = theirs.word_embed_proj_dim
    return OPTConfig(
        width=theirs.hidden_size,
        depth=theirs.num_hidden_layers,
        heads=theirs.num_attention_heads,
        mlp_dim=theirs.ffn_dim,
        vocab_size=theirs.vocab_size,
        max_positions=theirs.max_position_embeddings,
        embed_width=None if embed == theirs.hidden_size else embed,
        pre_norm=theirs.do_layer_norm_before,
        dropout=theirs.dropout,
        pad_id=theirs.pad_token_id,
        bos_id=theirs.bos_token_id,
        tied_head=theirs.tie_word_embeddings,
    )


def write(ours: OPTConfig, rows: int, end_id: int) -> dict[str, Any]:
    """Return transformers' settings."""
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "vocab_size": rows,
        "hidden_size": ours.width,
        "num_hidden_layers": ours.depth,
        "num_attention_heads": ours.heads,
        "ffn_dim": ours.mlp_dim,
        "max_position_embeddings": ours.max_positions,
        "word_embed_proj_dim": ours.embedding_width,
        "do_layer_norm_before": ours.pre_norm,
        "tie_word_embeddings": ours.tied_head,
        "dropout": ours.dropout,
        "activation_function": "relu",
        "pad_token_id": ours.pad_id,
        "bos_token_id": ours.bos_id,
        "eos_token_id": end_id,
        "prefix": "</s>",
    }


def without_first_word(rules: Sequence[Rule], names: Container[str]) -> list[Rule]:
    """Read older checkpoints, which lack the first word of every name."""
    token = "decoder.embed_tokens.weight"
    if token not in names:
        return list(rules)
    return [
        dataclasses.replace(rule, source=rule.sources[0].removeprefix("model."))
        for rule in rules
    ]


FAMILY = LanguageFamily(
    title="OPT",
    pattern=r"(model\.)?decoder\.layers\.0\.fc1\.",
    rules=opt_rules,
    settings={"opt": settings.OPT},
    config_classes={"opt": "OPTConfig"},
    arrays={
        "vocab_size": ("model.decoder.embed_tokens.weight", 0),
        "word_embed_proj_dim": ("model.decoder.embed_tokens.weight", 1),
        "hidden_size": ("model.decoder.embed_positions.weight", 1),
        "ffn_dim": ("model.decoder.layers.0.fc1.weight", 0),
    },
    layers={"num_hidden_layers": r"(?:model\.)?decoder\.layers\.(\d+)\."},
    read=read,
    write=write,
    adapt=without_first_word,
    invisible=("heads",),
)
