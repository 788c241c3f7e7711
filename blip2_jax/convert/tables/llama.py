"""Names and settings of the Llama family in transformers.

`LlamaForCausalLM`, `MistralForCausalLM`, `Qwen2ForCausalLM`, `Qwen3ForCausalLM` and
`GraniteForCausalLM` name their arrays alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blip2_jax.convert.tables.huggingface_settings import EXECUTION, RECORD, Settings
from blip2_jax.convert.tables.name_table import TRANSPOSE, Rule, linear, norm
from blip2_jax.models.sizes import LlamaConfig


def llama_rules(config: LlamaConfig, source: str = "", target: str = "") -> list[Rule]:
    """Return the table of a model; `tables.towers` describes the arguments."""
    blocks = f"{source}model.layers.{{}}", f"{target}blocks"
    return [
        *shared_rules(config, source, target),
        *_projection_rules(config, *blocks),
    ]


def shared_rules(config: LlamaConfig, source: str = "", target: str = "") -> list[Rule]:
    """Return the rules of all parts but the joined matrices of Phi-3.

    A tied output head is an alias of the token table.
    """
    token, head = f"{source}model.embed_tokens.weight", f"{source}lm_head.weight"
    rules = [
        Rule(
            token,
            f"{target}embeddings/token",
            aliases=(head,) if config.tied_head else (),
        ),
        *_block_rules(config, f"{source}model.layers.{{}}", f"{target}blocks"),
        *norm(f"{source}model.norm", f"{target}final_norm", bias=False),
    ]
    if not config.tied_head:
        rules.append(Rule(head, f"{target}head/kernel", TRANSPOSE))
    return rules


def _block_rules(config: LlamaConfig, theirs: str, ours: str) -> list[Rule]:
    layers: dict[str, Any] = {"layers": range(config.depth), "stack": True}
    norms = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm",
    }
    rules: list[Rule] = []
    for part, name in norms.items():
        rules += norm(f"{theirs}.{part}", f"{ours}/{name}", bias=False, **layers)
    linears = {
        "self_attn.o_proj": ("attention/output", config.output_bias),
        "mlp.down_proj": ("mlp/down", config.mlp_bias),
    }
    return rules + _linear_rules(linears, theirs, ours, layers)


def _projection_rules(config: LlamaConfig, theirs: str, ours: str) -> list[Rule]:
    """Return the rules of the projections that Phi-3 joins."""
    layers: dict[str, Any] = {"layers": range(config.depth), "stack": True}
    names = {"q": "query", "k": "key", "v": "value"}
    linears = {
        f"self_attn.{part}_proj": (f"attention/{name}", config.qkv_bias)
        for part, name in names.items()
    }
    linears |= {
        f"mlp.{part}_proj": (f"mlp/{part}", config.mlp_bias) for part in ("gate", "up")
    }
    rules = _linear_rules(linears, theirs, ours, layers)
    if config.query_key_norm:
        for part in "qk":
            rules += norm(
                f"{theirs}.self_attn.{part}_norm",
                f"{ours}/attention/{names[part]}_norm",
                bias=False,
                **layers,
            )
    return rules


def _linear_rules(
    linears: Mapping[str, tuple[str, bool]],
    theirs: str,
    ours: str,
    layers: Mapping[str, Any],
) -> list[Rule]:
    """Return the rules of Linears: our path and the presence of a bias by name."""
    return [
        rule
        for part, (path, bias) in linears.items()
        for rule in linear(f"{theirs}.{part}", f"{ours}/{path}", bias=bias, **layers)
    ]


USED = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
FIXED: dict[str, tuple[Any, ...]] = {
    "attention_dropout": (0,),
    "hidden_act": ("silu",),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (1,),
}
ENCODER_DECODER = {"decoder_start_token_id": "for encoder-decoders"}
_WINDOW = ("layer_types", "sliding_window", "use_sliding_window")


def _settings(
    *used: str,
    fixed: Mapping[str, tuple[Any, ...]] | None = None,
    without_effect: Mapping[str, str] | None = None,
) -> Settings:
    """Return a table with what all classes of the family share."""
    return Settings(
        used=(*USED, *used),
        fixed={**FIXED, **(fixed or {})},
        without_effect={**ENCODER_DECODER, **(without_effect or {})},
    )


_INTERLEAVED: dict[str, tuple[Any, ...]] = {"rope_interleaved": (False,)}
_BELOW_WINDOW = {
    "max_window_layers": "no text is longer than the window, so that all layers see all"
}
LLAMA = _settings(
    "attention_bias",
    "mlp_bias",
    fixed=_INTERLEAVED,
    without_effect={
        "is_llama_config": RECORD,
        "max_sequence_length": "`max_position_embeddings` counts",
        "pretraining_tp": EXECUTION,
        "transformers.js_config": EXECUTION,
    },
)
MISTRAL = _settings("sliding_window")
QWEN2 = _settings(*_WINDOW, fixed={"use_mrope": (False,)}, without_effect=_BELOW_WINDOW)
QWEN3 = _settings("attention_bias", *_WINDOW, without_effect=_BELOW_WINDOW)
GRANITE = _settings(
    "attention_bias",
    "mlp_bias",
    "attention_multiplier",
    "embedding_multiplier",
    "logits_scaling",
    "residual_multiplier",
)
# By `model_type`.
SETTINGS = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "granite": GRANITE,
}
# Title: table, as docs/conversion.md lists them.
TABLES = {
    "`LlamaConfig`": LLAMA,
    "`MistralConfig`": MISTRAL,
    "`Qwen2Config`": QWEN2,
    "`Qwen3Config`": QWEN3,
    "`GraniteConfig`": GRANITE,
}
