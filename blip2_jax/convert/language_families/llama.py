"""Llama, Mistral, Qwen2, Qwen3 and Granite as transformers declares them."""

from __future__ import annotations

from typing import Any

from blip2_jax.convert.language_families.family import LanguageFamily
from blip2_jax.convert.language_families.rope import INVISIBLE, read_rope, write_rope
from blip2_jax.convert.tables.llama import SETTINGS, llama_rules
from blip2_jax.models.sizes import LlamaConfig

WINDOWED = "sliding_attention"
LAYER_TYPES = ("full_attention", WINDOWED)


def read(theirs: Any) -> LlamaConfig:
    """Convert transformers' configuration of any class of the family.

    Raises:
      ValueError: this package does not have the variant.
    """
    share = (theirs.rope_parameters or {}).get("partial_rotary_factor", 1)
    if share != 1:
        raise ValueError(f"partial_rotary_factor is {share}; only 1 is supported")
    return LlamaConfig(**common_fields(theirs))


def common_fields(theirs: Any) -> dict[str, Any]:
    """Return the fields of `LlamaConfig` for a configuration of transformers.

    Raises:
      ValueError: this package does not have the variant.
    """
    kind = theirs.model_type
    bias = getattr(theirs, "attention_bias", kind == "qwen2")
    heads = theirs.num_attention_heads
    end_id = _first_end_id(theirs.eos_token_id)
    pad_id = theirs.pad_token_id
    return dict(
        width=theirs.hidden_size,
        depth=theirs.num_hidden_layers,
        heads=heads,
        kv_heads=theirs.num_key_value_heads or heads,
        head_width=getattr(theirs, "head_dim", None) or theirs.hidden_size // heads,
        mlp_dim=theirs.intermediate_size,
        vocab_size=theirs.vocab_size,
        max_positions=_positions(theirs),
        layer_norm_eps=theirs.rms_norm_eps,
        **read_rope(theirs),
        qkv_bias=bias,
        output_bias=bias and kind != "qwen2",
        mlp_bias=getattr(theirs, "mlp_bias", False),
        query_key_norm=kind == "qwen3",
        tied_head=theirs.tie_word_embeddings,
        embedding_scale=getattr(theirs, "embedding_multiplier", 1.0),
        attention_scale=getattr(theirs, "attention_multiplier", None),
        residual_scale=getattr(theirs, "residual_multiplier", 1.0),
        logits_divisor=getattr(theirs, "logits_scaling", 1.0),
        pad_id=end_id if pad_id is None or pad_id < 0 else pad_id,
        bos_id=theirs.bos_token_id,
        eos_id=end_id,
    )


def _first_end_id(ids: int | list[int] | None) -> int:
    """Return the end token; of several the first."""
    if not ids and ids != 0:
        raise ValueError(f"eos_token_id is {ids!r}; name the token that ends a text")
    return ids[0] if isinstance(ids, list) else ids


def _positions(theirs: Any) -> int:
    """Return the number of positions within which no window restricts attention."""
    layer_types = set(getattr(theirs, "layer_types", None) or ())
    if unknown := layer_types - set(LAYER_TYPES):
        raise ValueError(
            f"layer_types holds {', '.join(sorted(unknown))}; supported are "
            f"{', '.join(LAYER_TYPES)}"
        )
    window = getattr(theirs, "sliding_window", None)
    if layer_types and WINDOWED not in layer_types:
        window = None
    if window is None:
        return theirs.max_position_embeddings
    return min(window, theirs.max_position_embeddings)


def write(ours: LlamaConfig, rows: int, end_id: int) -> dict[str, Any]:
    """Return transformers' settings, of the class that has these sizes.

    Raises:
      ValueError: no class has them.
    """
    model_type, architecture, more = class_of(ours)
    kind = {"model_type": model_type, "architectures": [architecture]}
    return kind | common_settings(ours, rows, end_id) | more


def common_settings(ours: LlamaConfig, rows: int, end_id: int) -> dict[str, Any]:
    """Return the settings that all classes have."""
    return {
        "vocab_size": rows,
        "hidden_size": ours.width,
        "num_hidden_layers": ours.depth,
        "num_attention_heads": ours.heads,
        "num_key_value_heads": ours.kv_heads,
        "head_dim": ours.head_width,
        "intermediate_size": ours.mlp_dim,
        "hidden_act": "silu",
        "max_position_embeddings": ours.max_positions,
        "rms_norm_eps": ours.layer_norm_eps,
        **write_rope(ours),
        "tie_word_embeddings": ours.tied_head,
        "pad_token_id": ours.pad_id,
        "bos_token_id": ours.bos_id,
        "eos_token_id": end_id,
    }


def class_of(ours: LlamaConfig) -> tuple[str, str, dict[str, Any]]:
    """Return `model_type`, architecture and own settings of the class for the sizes."""
    multipliers = {
        "embedding_multiplier": ours.embedding_scale,
        "residual_multiplier": ours.residual_scale,
        "logits_scaling": ours.logits_divisor,
    }
    is_granite = ours.attention_scale is not None or set(multipliers.values()) != {1.0}
    same_bias = ours.qkv_bias == ours.output_bias
    bias = {"attention_bias": ours.qkv_bias}
    mlp = {"mlp_bias": ours.mlp_bias}
    own_width = ours.head_width * ours.heads != ours.width
    if is_granite and same_bias and not ours.query_key_norm and not own_width:
        default = ours.head_width**-0.5
        scale = default if ours.attention_scale is None else ours.attention_scale
        multipliers["attention_multiplier"] = scale
        return "granite", "GraniteForCausalLM", bias | mlp | multipliers
    if is_granite or (ours.mlp_bias and (ours.query_key_norm or not same_bias)):
        raise ValueError("transformers has no class with these multipliers and biases")
    if ours.query_key_norm and same_bias:
        return "qwen3", "Qwen3ForCausalLM", bias
    if same_bias:
        return "llama", "LlamaForCausalLM", bias | mlp
    if ours.qkv_bias and not ours.query_key_norm and not own_width:
        return "qwen2", "Qwen2ForCausalLM", {}
    raise ValueError("transformers has no class with these biases and norms")


FAMILY = LanguageFamily(
    title="Llama",
    pattern=r"model\.layers\.0\.self_attn\.q_proj\.",
    rules=llama_rules,
    settings=SETTINGS,
    config_classes={
        "llama": "LlamaConfig",
        "mistral": "MistralConfig",
        "qwen2": "Qwen2Config",
        "qwen3": "Qwen3Config",
        "granite": "GraniteConfig",
    },
    arrays={
        "vocab_size": ("model.embed_tokens.weight", 0),
        "hidden_size": ("model.embed_tokens.weight", 1),
        "intermediate_size": ("model.layers.0.mlp.gate_proj.weight", 0),
    },
    layers={"num_hidden_layers": r"model\.layers\.(\d+)\."},
    read=read,
    write=write,
    leftovers=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    invisible=(
        "heads",
        "kv_heads",
        "head_width",
        "layer_norm_eps",
        *INVISIBLE,
        "embedding_scale",
        "attention_scale",
        "residual_scale",
        "logits_divisor",
    ),
)
