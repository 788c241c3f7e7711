"""Tiny models of transformers' Llama family, with random values in every array.

Phi-3 has the same module, and another table of names.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from blip2_jax.convert.language_families.registry import (
    language_model_rules,
    language_sizes,
)
from blip2_jax.convert.tables import name_table

VOCAB, EOS = 40, 2
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": EOS,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.5],
    "long_factor": [2.0, 7.0],
    "original_max_position_embeddings": 32,
}
# Scalings of the positions that no model of `MODELS` has.
SCALED = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
    "yarn": YARN,
    "yarn_settings": YARN
    | {"beta_fast": 3.0, "beta_slow": 0.5, "truncate": False}
    | {"mscale": 1.0, "mscale_all_dim": 0.5},
    "longrope": LONGROPE,
    "longrope_settings": LONGROPE | {"factor": 8.0, "attention_factor": 1.25},
}
# Name: class of transformers, settings beside `SIZES`.
MODELS = {
    "llama": ("Llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-3}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 8}),
    "linear": (
        "Llama",
        {
            "rope_parameters": LINEAR,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "mistral": ("Mistral", {"num_key_value_heads": 1, "sliding_window": 64}),
    "phi3": (
        "Phi3",
        {
            "hidden_size": 32,
            "rope_parameters": LONGROPE | {"partial_rotary_factor": 0.5},
            "original_max_position_embeddings": 32,
        },
    ),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.7,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
    ),
}


@functools.cache
def peer(name):
    """Build the model of transformers."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", minversion="5")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind, settings = MODELS.get(name) or ("Llama", {"rope_parameters": SCALED[name]})
    config = getattr(transformers, f"{kind}Config")(**SIZES | settings)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for path, parameter in model.named_parameters():
        if "norm" in path:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@functools.cache
def ours(name):
    """Return the sizes and the converted parameters of `peer`."""
    model = peer(name)
    config = language_sizes(model.config)
    source = {key: value.numpy() for key, value in model.state_dict().items()}
    params = name_table.to_ours_complete(
        source, language_model_rules(config, target="")
    )
    return config, jax.tree.map(jnp.asarray, params)
