"""CLIP (Radford et al. 2021): an image tower and a text tower with one vector each."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from blip2_jax.models.presets import CLIP_VIT_L
from blip2_jax.models.sizes import ViTConfig
from blip2_jax.models.vision.dual_encoder import TextTower, TextTowerConfig
from blip2_jax.models.vision.vit import VisionTransformer, normalize_images
from blip2_jax.nn.layers import dense, layer_norm
from blip2_jax.nn.precision import einsum_fp32
from blip2_jax.nn.similarity import unit_vectors

# `eos_token_id` of folders written before transformers knew CLIP's end token. It
# stands for "the token with the highest id", which the end token is.
LEGACY_END_ID = 2
INITIAL_LOGIT_SCALE = np.log(1 / 0.07)


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Sizes of both towers.

    Attributes:
      vision: image tower; all its blocks are used.
      text: text tower, causal.
      projection_dim: width of the common space.
      end_id: token whose output stands for the text, as transformers counts:
        `LEGACY_END_ID` selects the first token with the highest id.
    """

    vision: ViTConfig
    text: TextTowerConfig
    projection_dim: int = 768
    end_id: int = LEGACY_END_ID


# `openai/clip-vit-large-patch14`. BLIP-2's image encoder has one block less.
CLIP_LARGE = ClipConfig(
    vision=dataclasses.replace(CLIP_VIT_L, depth=CLIP_VIT_L.depth + 1),
    text=TextTowerConfig(
        vocab_size=49408,
        width=768,
        depth=12,
        heads=12,
        mlp_dim=3072,
        max_positions=77,
        layer_norm_eps=1e-5,
        activation="quick_gelu",
        causal=True,
    ),
)


def end_positions(ids: Int[Array, "B T"], end_id: int) -> Int[Array, " B"]:
    """Return the position of the first end token of each text; see `ClipConfig`."""
    is_end = ids.max(axis=1, keepdims=True) if end_id == LEGACY_END_ID else end_id
    return jnp.argmax(ids == is_end, axis=1)


class Clip(nn.Module):
    """Both towers with their norms and projections into one space of width C."""

    config: ClipConfig
    dtype: DTypeLike = jnp.float32
    scan: bool = True

    def setup(self) -> None:
        """Create submodules and parameters."""
        c = self.config
        self.visual_encoder = VisionTransformer(c.vision, self.dtype, self.scan)
        self.vision_norm = layer_norm(c.vision.layer_norm_eps, self.dtype)
        self.vision_projection = dense(c.projection_dim, self.dtype, use_bias=False)
        self.text_encoder = TextTower(c.text, self.dtype, self.scan)
        self.text_norm = layer_norm(c.text.layer_norm_eps, self.dtype)
        self.text_projection = dense(c.projection_dim, self.dtype, use_bias=False)
        initial = nn.initializers.constant(INITIAL_LOGIT_SCALE)
        self.logit_scale = self.param("logit_scale", initial, ())

    def encode_image(self, images: Shaped[Array, "B R R 3"]) -> Float[Array, "B C"]:
        """Compute fp32 unit vectors of images; uint8 images are normalised first."""
        if images.dtype == jnp.uint8:
            images = normalize_images(images, self.config.vision.statistics)
        class_token = self.visual_encoder(images)[:, 0]
        return unit_vectors(self.vision_projection(self.vision_norm(class_token)))

    def encode_text(
        self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]
    ) -> Float[Array, "B C"]:
        """Compute fp32 unit vectors of texts.

        Args:
          ids: begin token, words, end token, padding. An id of the padding must not
            exceed that of the end token.
          mask: True = a real token.
        """
        hidden = self.text_encoder(ids, mask)
        end = end_positions(ids, self.config.end_id)
        pooled = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
        return unit_vectors(self.text_projection(self.text_norm(pooled)))

    def __call__(
        self,
        images: Shaped[Array, "B R R 3"],
        ids: Int[Array, "texts T"],
        mask: Bool[Array, "texts T"],
    ) -> Float[Array, "B texts"]:
        """Compute fp32 logits of every image with every text: scaled cosines."""
        cosines = einsum_fp32(
            "ic,jc->ij", self.encode_image(images), self.encode_text(ids, mask)
        )
        return cosines * jnp.exp(self.logit_scale)
