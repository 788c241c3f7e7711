"""The sizes of all named models.

Sizes follow Li et al. 2023 (BLIP-2) and the public configurations of the frozen models.
A `Blip2Config` describes one complete model. `PRESETS` holds the released models and
the small ones of the shapes world.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from blip2_jax.data.dataclass_options import from_options
from blip2_jax.models.sizes import (
    FeaturesConfig,
    LanguageModelConfig,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    ProjectorConfig,
    QFormerConfig,
    T5Config,
    ViTConfig,
)

# Config classes by the `kind` that configurations and files name.
PARTS: dict[str, type] = {
    "features": FeaturesConfig,
    "vit": ViTConfig,
    "qformer": QFormerConfig,
    "projector": ProjectorConfig,
    "opt": OPTConfig,
    "t5": T5Config,
    "llama": LlamaConfig,
    "phi3": Phi3Config,
}


@dataclasses.dataclass(frozen=True)
class Blip2Config:
    """Sizes of one complete model; without a language model it is a stage-1 model."""

    vision: ViTConfig | FeaturesConfig
    qformer: QFormerConfig
    language_model: LanguageModelConfig | None = None
    prompt: str = ""  # precedes every caption and is not a target
    ln_vision_eps: float = 1e-5  # as the original; transformers uses the encoder's
    projector: ProjectorConfig | None = None  # in place of the Q-Former, in stage 2

    def __post_init__(self) -> None:
        """Check that the projector can split the image's patches."""
        if self.projector is not None:
            self.projector.split(self.vision.num_patches)

    @property
    def num_visual_tokens(self) -> int:
        """Number of vectors that the language model gets for an image."""
        if self.projector is not None:
            return self.projector.num_tokens
        return self.qformer.num_queries

    @property
    def visual_width(self) -> int:
        """Width of these vectors before their projection to the language model."""
        if self.projector is None:
            return self.qformer.width
        vision = self.vision
        return self.projector.output_width(vision.num_patches, vision.width)


EVA_VIT_G = ViTConfig(width=1408, depth=39, heads=16, mlp_dim=6144)
CLIP_VIT_L = ViTConfig(
    width=1024,
    depth=23,
    heads=16,
    mlp_dim=4096,
    activation="quick_gelu",
    layer_norm_eps=1e-5,
    key_bias=True,
    patch_bias=False,
    pre_norm=True,
)

# What all image encoders of a family have in common: SigLIP (Zhai et al. 2023) and
# SigLIP 2, which have the same sizes; DINOv2 (Oquab et al. 2023).
SIGLIP: dict[str, Any] = {
    "key_bias": True,
    "class_token": False,
    "final_norm": True,
    "statistics": "half",
}
DINOV2: dict[str, Any] = {
    "key_bias": True,
    "layer_scale": True,
    "final_norm": True,
    "statistics": "imagenet",
}
SIGLIP_BASE_224 = ViTConfig(768, 12, 12, 3072, 224, 16, "gelu_new", **SIGLIP)
SIGLIP_LARGE_256 = ViTConfig(1024, 24, 16, 4096, 256, 16, "gelu_new", **SIGLIP)
SIGLIP_SO400M_384 = ViTConfig(1152, 27, 16, 4304, 384, 14, "gelu_new", **SIGLIP)
DINOV2_SMALL = ViTConfig(384, 12, 6, 1536, 518, **DINOV2)
DINOV2_BASE = ViTConfig(768, 12, 12, 3072, 518, **DINOV2)
DINOV2_LARGE = ViTConfig(1024, 24, 16, 4096, 518, **DINOV2)
DINOV2_GIANT = ViTConfig(
    1536, 40, 24, 4096, 518, activation="silu", gated_mlp=True, **DINOV2
)
_DINOV2_SIZES = {
    "dinov2_small": DINOV2_SMALL,
    "dinov2_base": DINOV2_BASE,
    "dinov2_large": DINOV2_LARGE,
    "dinov2_giant": DINOV2_GIANT,
}
# Image encoders by the name that `config.model.overrides.vision.kind` may have.
ENCODERS: dict[str, ViTConfig] = {
    "eva_vit_g": EVA_VIT_G,
    "clip_vit_l": CLIP_VIT_L,
    "siglip_base_224": SIGLIP_BASE_224,
    "siglip_large_256": SIGLIP_LARGE_256,
    "siglip_so400m_384": SIGLIP_SO400M_384,
    **_DINOV2_SIZES,
    **{
        f"{name}_registers": dataclasses.replace(sizes, num_registers=4)
        for name, sizes in _DINOV2_SIZES.items()
    },
}
QFORMER_BASE = QFormerConfig()

OPT_125M = OPTConfig(768, 12, 12, 3072)
OPT_350M = OPTConfig(1024, 24, 16, 4096, embed_width=512, pre_norm=False)
OPT_1_3B = OPTConfig(2048, 24, 32, 8192)
OPT_2_7B = OPTConfig(2560, 32, 32, 10240)
OPT_6_7B = OPTConfig(4096, 32, 32, 16384)
OPT_13B = OPTConfig(5120, 40, 40, 20480)
OPT_30B = OPTConfig(7168, 48, 56, 28672)

FLAN_T5_SMALL = T5Config(512, 8, 6, 1024)
FLAN_T5_BASE = T5Config(768, 12, 12, 2048)
FLAN_T5_LARGE = T5Config(1024, 24, 16, 2816)
FLAN_T5_XL = T5Config(2048, 24, 32, 5120)
FLAN_T5_XXL = T5Config(4096, 24, 64, 10240)

# mT5, and mT0, which is trained from it (Muennighoff et al. 2022).
_MT5: dict[str, Any] = {"vocab_size": 250_112, "activation": "gelu_new"}
MT5_SMALL = dataclasses.replace(FLAN_T5_SMALL, **_MT5)
MT5_BASE = dataclasses.replace(FLAN_T5_BASE, **_MT5)
MT5_LARGE = dataclasses.replace(FLAN_T5_LARGE, **_MT5)
MT5_XL = dataclasses.replace(FLAN_T5_XL, **_MT5)
MT5_XXL = dataclasses.replace(FLAN_T5_XXL, **_MT5)

LLAMA_2_7B = LlamaConfig(4096, 32, 32, 32, 128, 11008)
VICUNA_7B = LLAMA_2_7B  # version 1.5
VICUNA_13B = LlamaConfig(5120, 40, 40, 40, 128, 13824)
# Version 1.1, of the first Llama, as in InstructBLIP: texts begin with the end token.
_VICUNA_1_1: dict[str, Any] = {
    "max_positions": 2048,
    "layer_norm_eps": 1e-6,
    "bos_id": 2,
}
INSTRUCT_VICUNA_7B = dataclasses.replace(VICUNA_7B, **_VICUNA_1_1)
INSTRUCT_VICUNA_13B = dataclasses.replace(VICUNA_13B, **_VICUNA_1_1)
LLAMA_3_2_1B = LlamaConfig(
    2048,
    16,
    32,
    8,
    64,
    8192,
    vocab_size=128_256,
    max_positions=131_072,
    rope_theta=500_000.0,
    rope_scaling="llama3",
    rope_factor=32.0,
    tied_head=True,
    pad_id=128_001,
    bos_id=128_000,
    eos_id=128_001,
)
# Version 0.1. Each layer sees the last 4096 positions, so that within them its
# attention is the same as without a window.
MISTRAL_7B = LlamaConfig(4096, 32, 32, 8, 128, 14336, max_positions=4096)
QWEN2_5_0_5B = LlamaConfig(
    896,
    24,
    14,
    2,
    64,
    4864,
    vocab_size=151_936,
    max_positions=32_768,
    layer_norm_eps=1e-6,
    rope_theta=1e6,
    qkv_bias=True,
    tied_head=True,
    pad_id=151_643,
    bos_id=None,
    eos_id=151_643,
)
QWEN3_0_6B = LlamaConfig(
    1024,
    28,
    16,
    8,
    128,
    3072,
    vocab_size=151_936,
    max_positions=40_960,
    layer_norm_eps=1e-6,
    rope_theta=1e6,
    query_key_norm=True,
    tied_head=True,
    pad_id=151_643,
    bos_id=None,
    eos_id=151_645,
)
SMOLLM2_135M = LlamaConfig(
    576,
    30,
    9,
    3,
    64,
    1536,
    vocab_size=49_152,
    max_positions=8192,
    rope_theta=100_000.0,
    tied_head=True,
    pad_id=0,
    bos_id=None,
    eos_id=0,
)
# The version for 4096 positions. Each layer sees the last 2047.
PHI_3_MINI = Phi3Config(
    3072,
    32,
    32,
    32,
    96,
    8192,
    vocab_size=32_064,
    max_positions=2047,
    pad_id=32_000,
    eos_id=32_000,
)


# The shapes world, trained on a laptop (`make demo`). An image token covers one cell
# of a scene.
SHAPES_VIT = ViTConfig(
    width=128,
    depth=4,
    heads=4,
    mlp_dim=512,
    image_size=64,
    patch_size=32,
    activation="quick_gelu",
    key_bias=True,
)
SHAPES_QFORMER = QFormerConfig(
    width=128,
    depth=3,
    heads=4,
    mlp_dim=256,
    cross_attention_every=1,
    num_queries=20,
    vocab_size=191,
    max_positions=64,
    projection_dim=64,
    dropout=0.0,
    initial_std=0.08,
)
# Deep and narrow: looking things up in the context takes layers more than width.
SHAPES_OPT = OPTConfig(128, 5, 4, 256, vocab_size=452, max_positions=96, dropout=0.0)
SHAPES_T5 = T5Config(
    128,
    5,
    4,
    192,
    head_width=32,
    decoder_depth=2,
    vocab_size=166,
    relative_buckets=16,
    relative_max_distance=32,
    dropout=0.0,
)
# A quarter to a third of the parameters, as ViT-L relative to ViT-g. The paper's tables
# compare small and large parts (`configs/shapes_tables.py`).
SHAPES_VIT_SMALL = dataclasses.replace(SHAPES_VIT, width=64, mlp_dim=256)
SHAPES_OPT_SMALL = dataclasses.replace(SHAPES_OPT, width=64, mlp_dim=128)
SHAPES_T5_SMALL = dataclasses.replace(SHAPES_T5, width=64, mlp_dim=96, head_width=16)


def at_resolution(vision: ViTConfig, image_size: int) -> ViTConfig:
    """Return the tower for another image size; loading interpolates its positions."""
    return dataclasses.replace(vision, image_size=image_size)


def _released() -> dict[str, Blip2Config]:
    """Return the twelve models released by the authors of BLIP-2."""
    vit_g, vit_l, qformer = EVA_VIT_G, CLIP_VIT_L, QFORMER_BASE
    vit_g_364, vit_l_364 = at_resolution(vit_g, 364), at_resolution(vit_l, 364)
    caption: Callable[[LanguageModelConfig], Blip2Config] = lambda language_model: (
        Blip2Config(vit_g_364, qformer, language_model, prompt="a photo of")
    )
    return {
        "pretrain": Blip2Config(vit_g, qformer),
        "pretrain_vitL": Blip2Config(vit_l, qformer),
        "coco": Blip2Config(vit_g_364, qformer),
        "coco_vitL": Blip2Config(vit_l_364, qformer),
        "pretrain_opt2.7b": Blip2Config(vit_g, qformer, OPT_2_7B),
        "pretrain_opt6.7b": Blip2Config(vit_g, qformer, OPT_6_7B),
        "caption_coco_opt2.7b": caption(OPT_2_7B),
        "caption_coco_opt6.7b": caption(OPT_6_7B),
        "pretrain_flant5xl": Blip2Config(vit_g, qformer, FLAN_T5_XL),
        "pretrain_flant5xl_vitL": Blip2Config(vit_l, qformer, FLAN_T5_XL),
        "pretrain_flant5xxl": Blip2Config(vit_g, qformer, FLAN_T5_XXL),
        "caption_coco_flant5xl": caption(FLAN_T5_XL),
    }


def _instructed() -> dict[str, Blip2Config]:
    """Return the models of InstructBLIP (Dai et al. 2023).

    Their sizes are BLIP-2's. Their Q-Former reads the prompt too.
    """
    language_models: dict[str, LanguageModelConfig] = {
        "flant5xl": FLAN_T5_XL,
        "flant5xxl": FLAN_T5_XXL,
        "vicuna7b": INSTRUCT_VICUNA_7B,
        "vicuna13b": INSTRUCT_VICUNA_13B,
    }
    return {
        f"instructblip_{name}": Blip2Config(EVA_VIT_G, QFORMER_BASE, language_model)
        for name, language_model in language_models.items()
    }


def _small() -> dict[str, Blip2Config]:
    """Return the models of the shapes world."""
    vision = {"shapes": SHAPES_VIT, "shapes_small": SHAPES_VIT_SMALL}
    language: dict[str, LanguageModelConfig | None] = {
        "": None,
        "_opt": SHAPES_OPT,
        "_t5": SHAPES_T5,
        "_opt_small": SHAPES_OPT_SMALL,
        "_t5_small": SHAPES_T5_SMALL,
    }
    return {
        f"{tower_name}{suffix}": Blip2Config(tower, SHAPES_QFORMER, language_model)
        for tower_name, tower in vision.items()
        for suffix, language_model in language.items()
    }


# mBLIP (Geigle et al. 2023), BLIP-2 with mT0-XL.
_MULTILINGUAL = {"mblip_mt0xl": Blip2Config(EVA_VIT_G, QFORMER_BASE, MT5_XL)}
RELEASED: tuple[str, ...] = tuple(_released())
INSTRUCTED: tuple[str, ...] = tuple(_instructed())
PRESETS: dict[str, Blip2Config] = _released() | _instructed() | _MULTILINGUAL | _small()


def preset(name: str) -> Blip2Config:
    """Look up a preset by name.

    Raises:
      KeyError: `name` is not in `PRESETS`.
    """
    if name not in PRESETS:
        known = ", ".join(sorted(PRESETS))
        raise KeyError(f"unknown preset {name!r}; expected one of {known}")
    return PRESETS[name]


def to_plain(config: Blip2Config) -> dict[str, Any]:
    """Convert sizes to plain values for JSON; every part names its `kind`."""
    kinds = {kind: name for name, kind in PARTS.items()}
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if type(value) in kinds:
            value = {"kind": kinds[type(value)], **value.stored_fields()}
        if field.name == "projector" and value is None:
            continue  # files of earlier versions are equal
        plain[field.name] = value
    return plain


def from_plain(plain: Mapping[str, Any]) -> Blip2Config:
    """Build sizes from the plain values of `to_plain`.

    Raises:
      ValueError: a `kind` or a field is unknown.
    """
    values: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping):
            sizes = dict(value)
            kind = sizes.pop("kind", None)
            if kind not in PARTS:
                known = ", ".join(PARTS)
                raise ValueError(f"{name}.kind is {kind!r}; expected one of {known}")
            value = from_options(PARTS[kind], sizes, name)
        values[name] = value
    return from_options(Blip2Config, values, "sizes")
