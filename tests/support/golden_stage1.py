"""The tiny stage-1 model whose numbers the original implementation computed."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from blip2_jax.convert.tables import lavis, name_table
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import QFormerConfig, ViTConfig
from tests.support.goldens import GOLDENS

STAGE1 = GOLDENS / "stage1_a"


def vision(raw: dict) -> ViTConfig:
    """Sizes of a golden model's image encoder."""
    vit = raw["vit"]
    mlp_dim = int(vit["width"] * vit["mlp_ratio"])
    return ViTConfig(
        vit["width"], vit["depth"], vit["heads"], mlp_dim, raw["img"], vit["patch"]
    )


@functools.cache
def config() -> Blip2Config:
    """Sizes of the golden model."""
    raw = json.loads((STAGE1 / "config.json").read_text())["config"]
    qformer = raw["qformer"]
    return Blip2Config(
        vision(raw),
        QFormerConfig(
            qformer["hidden"],
            qformer["layers"],
            qformer["heads"],
            qformer["intermediate"],
            qformer["cross_freq"],
            raw["n_query"],
            raw["bert_vocab"],
            qformer["max_position"],
            raw["embed_dim"],
        ),
    )


def rules():
    """Return the name table of the golden model."""
    return lavis.stage1_rules(config())


def load_params(file: str):
    """Load a state dict of the original as a parameter tree."""
    source = load_file(STAGE1 / file)
    return name_table.to_ours_complete(source, rules(), ignore=[lavis.POSITION_IDS])


@functools.cache
def params():
    """Return the golden weights."""
    return load_params("weights.safetensors")


def model(**kwargs) -> Blip2Stage1:
    """Return the golden model in fp32."""
    return Blip2Stage1(config(), jnp.float32, **kwargs)


def bound() -> Blip2Stage1:
    """Return the golden model bound to the golden weights."""
    return model().bind({"params": params()})


def load_case(name: str) -> dict[str, np.ndarray]:
    """Load the arrays of a golden file."""
    with np.load(STAGE1 / f"{name}.npz") as arrays:
        return dict(arrays)


def batch_of(case: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Convert a golden case to a batch of this package."""
    batch = {
        "image": jnp.asarray(case["image"].transpose(0, 2, 3, 1)),
        "text_ids": jnp.asarray(case["input_ids"], jnp.int32),
        "text_mask": jnp.asarray(case["attention_mask"] != 0),
    }
    if "image_id" in case:
        batch["image_id"] = jnp.asarray(case["image_id"], jnp.int32)
    return batch
