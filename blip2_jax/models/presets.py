"""Every named model as a frozen dataclass of sizes.

Sizes follow Li et al. 2023 (BLIP-2) and the public configurations of the frozen
models. A `Blip2Config` names the parts of one complete model; `PRESETS` holds the
released ones and the small ones that this package trains itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from blip2_jax.data.dataclass_options import from_options


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """A frozen vision transformer whose output is all tokens of its last block."""

    width: int
    depth: int
    heads: int
    mlp_dim: int
    image_size: int = 224
    patch_size: int = 14
    activation: str = "gelu"  # "gelu" (exact) or "quick_gelu"
    layer_norm_eps: float = 1e-6
    key_bias: bool = False  # EVA-CLIP has q and v bias but no k bias
    patch_bias: bool = True
    pre_norm: bool = False  # CLIP normalises before the first block

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """Patches and the class token."""
        return self.num_patches + 1


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """Stands in for a vision tower when images come as precomputed features."""

    num_tokens: int
    width: int


@dataclasses.dataclass(frozen=True)
class QFormerConfig:
    """BERT-base with cross-attention in blocks 0, 2, 4, ... (paper section 3.1)."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    cross_attention_every: int = 2
    num_queries: int = 32
    vocab_size: int = 30523  # BERT's 30522 and [DEC]
    max_positions: int = 512
    projection_dim: int = 256  # the width of the ITC space
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1
    # Of fresh matrices, those of the projections behind it included. BERT's suits its
    # width; narrow ones hardly hear the image at first unless it is about width**-0.5.
    initial_std: float = 0.02


@dataclasses.dataclass(frozen=True)
class OPTConfig:
    """A decoder-only language model of the OPT family."""

    width: int
    depth: int
    heads: int
    mlp_dim: int
    vocab_size: int = 50272
    max_positions: int = 2048
    embed_width: int | None = None  # OPT-350m embeds in 512 and projects to 1024
    pre_norm: bool = True  # OPT-350m is post-norm, without a final norm
    dropout: float = 0.1
    pad_id: int = 1
    bos_id: int = 2

    @property
    def embedding_width(self) -> int:
        """Width of the vectors that enter the model, the queries' included."""
        return self.embed_width or self.width


@dataclasses.dataclass(frozen=True)
class T5Config:
    """An encoder-decoder language model of the T5-v1.1 / FlanT5 family."""

    width: int
    depth: int
    heads: int
    mlp_dim: int
    head_width: int = 64
    decoder_depth: int | None = None  # None: as deep as the encoder
    vocab_size: int = 32128
    activation: str = "gelu"  # the original forces exact GELU; "gelu_new" is T5's
    relative_buckets: int = 32
    relative_max_distance: int = 128
    layer_norm_eps: float = 1e-6
    dropout: float = 0.1
    pad_id: int = 0
    eos_id: int = 1
    decoder_start_id: int = 0

    @property
    def embedding_width(self) -> int:
        """Width of the vectors that enter the model, the queries' included."""
        return self.width


LanguageModelConfig = OPTConfig | T5Config

# Parts of a model by the name of their kind, as configurations and files spell it.
PARTS: dict[str, type] = {
    "features": FeaturesConfig,
    "vit": ViTConfig,
    "qformer": QFormerConfig,
    "opt": OPTConfig,
    "t5": T5Config,
}


@dataclasses.dataclass(frozen=True)
class Blip2Config:
    """One complete model. Without a language model it is a stage-1 model."""

    vision: ViTConfig | FeaturesConfig
    qformer: QFormerConfig
    language_model: LanguageModelConfig | None = None
    prompt: str = ""  # text put before every caption, not a target
    ln_vision_eps: float = 1e-5  # the original's; transformers takes the encoder's


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


# The shapes world: trained by this package, on a laptop (`make demo`). An image token
# covers one place of a scene.
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
# Looking things up takes layers, not width: deep and narrow.
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
# A quarter to a third of the numbers each, as ViT-L has of ViT-g's: the paper's tables
# compare small parts with large ones (`configs/shapes_tables.py`).
SHAPES_VIT_SMALL = dataclasses.replace(SHAPES_VIT, width=64, mlp_dim=256)
SHAPES_OPT_SMALL = dataclasses.replace(SHAPES_OPT, width=64, mlp_dim=128)
SHAPES_T5_SMALL = dataclasses.replace(SHAPES_T5, width=64, mlp_dim=96, head_width=16)


def at_resolution(vision: ViTConfig, image_size: int) -> ViTConfig:
    """The same tower for another image size (its positions are interpolated)."""
    return dataclasses.replace(vision, image_size=image_size)


def _released() -> dict[str, Blip2Config]:
    """The twelve models whose weights the original authors released."""
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


def _small() -> dict[str, Blip2Config]:
    """The models of the shapes world, which this package trains itself."""
    vision = {"shapes": SHAPES_VIT, "shapes_small": SHAPES_VIT_SMALL}
    language: dict[str, LanguageModelConfig | None] = {
        "": None,
        "_opt": SHAPES_OPT,
        "_t5": SHAPES_T5,
        "_opt_small": SHAPES_OPT_SMALL,
        "_t5_small": SHAPES_T5_SMALL,
    }
    return {
        f"{seeing}{writing}": Blip2Config(tower, SHAPES_QFORMER, model)
        for seeing, tower in vision.items()
        for writing, model in language.items()
    }


RELEASED: tuple[str, ...] = tuple(_released())
PRESETS: dict[str, Blip2Config] = _released() | _small()


def preset(name: str) -> Blip2Config:
    """Look a preset up by name.

    Raises:
      KeyError: no such preset; the message lists those there are.
    """
    if name not in PRESETS:
        known = ", ".join(sorted(PRESETS))
        raise KeyError(f"unknown preset {name!r}; there are {known}")
    return PRESETS[name]


def to_plain(config: Blip2Config) -> dict[str, Any]:
    """The sizes as JSON can hold them; every part says its kind."""
    kinds = {kind: name for name, kind in PARTS.items()}
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if type(value) in kinds:
            value = {"kind": kinds[type(value)], **dataclasses.asdict(value)}
        plain[field.name] = value
    return plain


def from_plain(plain: Mapping[str, Any]) -> Blip2Config:
    """The inverse of `to_plain`.

    Raises:
      ValueError: an unknown kind or field; the message names it.
    """
    values: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping):
            sizes = dict(value)
            kind = sizes.pop("kind", None)
            if kind not in PARTS:
                known = ", ".join(PARTS)
                raise ValueError(f"{name}.kind is {kind!r}; there are {known}")
            value = from_options(PARTS[kind], sizes, name)
        values[name] = value
    return from_options(Blip2Config, values, "sizes")
