"""The tiny stage-2 models whose numbers the original implementation computed."""

import functools
import json

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from blip2_jax.convert.tables import lavis, name_table
from blip2_jax.convert.tables.lavis import stage2_rules
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import OPTConfig, QFormerConfig, T5Config
from tests.support.golden_stage1 import vision
from tests.support.goldens import GOLDENS

NAMES = ("stage2_opt_a", "stage2_opt350_a", "stage2_t5_a")
CASES = [
    (name, case)
    for name in NAMES
    for case in ("base", "emptyprompt_unfrozen" if "t5" in name else "prompt_unfrozen")
]


@functools.cache
def config(name: str) -> Blip2Config:
    """Return the sizes of a golden model."""
    raw = json.loads((GOLDENS / name / "config.json").read_text())["config"]
    qformer, llm = raw["qformer"], raw["llm"]
    return Blip2Config(
        vision(raw),
        QFormerConfig(
            qformer["hidden"],
            qformer["layers"],
            qformer["heads"],
            qformer["intermediate"],
            num_queries=raw["n_query"],
            vocab_size=raw["bert_vocab"],
            max_positions=qformer["max_position"],
        ),
        _opt(llm) if raw["kind"] == "opt" else _t5(llm),
    )


def _opt(llm) -> OPTConfig:
    return OPTConfig(
        llm["hidden_size"],
        llm["num_hidden_layers"],
        llm["num_attention_heads"],
        llm["ffn_dim"],
        llm["vocab_size"],
        llm["max_position_embeddings"],
        embed_width=llm["word_embed_proj_dim"],
        pre_norm=llm["do_layer_norm_before"],
    )


def _t5(llm) -> T5Config:
    return T5Config(
        llm["d_model"],
        llm["num_layers"],
        llm["num_heads"],
        llm["d_ff"],
        head_width=llm["d_kv"],
        vocab_size=llm["vocab_size"],
        relative_buckets=llm["relative_attention_num_buckets"],
        relative_max_distance=llm["relative_attention_max_distance"],
    )


def rules(name: str):
    """Return the name table of a golden model."""
    return stage2_rules(config(name))


def model(name: str, **kwargs) -> Blip2Stage2:
    """Return a golden model in fp32."""
    return Blip2Stage2(config(name), jnp.float32, **kwargs)


@functools.cache
def source(name: str) -> dict[str, np.ndarray]:
    """Load the golden weights under the original's names."""
    return load_file(GOLDENS / name / "weights.safetensors")


@functools.cache
def params(name: str):
    """Return the golden weights as a parameter tree."""
    return name_table.to_ours_complete(
        source(name), rules(name), ignore=[lavis.POSITION_IDS]
    )


def load_case(name: str, case: str) -> dict[str, np.ndarray]:
    """Load the arrays of one recorded forward pass."""
    with np.load(GOLDENS / name / f"case_{case}.npz") as arrays:
        return dict(arrays)


def load_gradients(name: str, case: str) -> dict[str, np.ndarray]:
    """Load the recorded gradients under the original's names."""
    return load_file(GOLDENS / name / f"grads_{case}.safetensors")


def batch_of(case: dict[str, np.ndarray]) -> dict[str, jnp.ndarray]:
    """Convert a golden case to a batch; labels of -100 are not targets."""
    ids = lambda name: jnp.asarray(case[name], jnp.int32)
    mask = lambda name: jnp.asarray(case[name] != 0)
    batch = {"image": jnp.asarray(case["image"].transpose(0, 2, 3, 1))}
    if "output_ids" in case:
        return batch | {
            "input_ids": ids("text_ids"),
            "input_mask": mask("text_mask"),
            "target_ids": ids("output_ids"),
            "target_mask": mask("output_mask"),
        }
    queries = case["proj"].shape[1]
    return batch | {
        "text_ids": ids("text_ids"),
        "text_mask": mask("text_mask"),
        "target_mask": jnp.asarray(case["labels"][:, queries:] != -100),
    }
