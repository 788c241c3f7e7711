"""Sizes of BLIP's captioner (Li et al. 2022), which writes the captions of CapFilt."""

from __future__ import annotations

import dataclasses

from blip2_jax.models.sizes import Sizes, ViTConfig


@dataclasses.dataclass(frozen=True)
class BertDecoderConfig(Sizes):
    """Sizes of a BERT that decodes text and attends to an image in every block.

    Attributes:
      width: width of the text.
      depth: number of blocks.
      heads: attention heads, of both attentions.
      mlp_dim: inner width of the feed-forward.
      vocab_size: BERT's 30,522 words, [DEC] and [ENC].
      max_positions: longest text.
      layer_norm_eps: epsilon of the layer norms.
      activation: of the feed-forward and of the head.
      dropout: always 0; the decoder is not trained here.
      start_id: first token of every text, [DEC].
      end_id: token that ends a text, [SEP].
      pad_id: token that fills a text after its end.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    vocab_size: int = 30524
    max_positions: int = 512
    layer_norm_eps: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.0
    start_id: int = 30522
    end_id: int = 102
    pad_id: int = 0


@dataclasses.dataclass(frozen=True)
class BlipConfig:
    """Sizes of a captioner: image encoder and text decoder."""

    vision: ViTConfig
    text: BertDecoderConfig = BertDecoderConfig()


BLIP_VIT_B = ViTConfig(
    width=768,
    depth=12,
    heads=12,
    mlp_dim=3072,
    image_size=384,
    patch_size=16,
    key_bias=True,
)
BLIP_VIT_L = dataclasses.replace(
    BLIP_VIT_B, width=1024, depth=24, heads=16, mlp_dim=4096
)
# The captioners that the authors released: `model_base_caption_capfilt_large.pth` and
# `model_large_caption.pth`, or `Salesforce/blip-image-captioning-{base,large}`.
BLIP_BASE = BlipConfig(BLIP_VIT_B)
BLIP_LARGE = BlipConfig(BLIP_VIT_L)
