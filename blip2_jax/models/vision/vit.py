"""The frozen image towers: EVA-CLIP ViT-g/14 and CLIP ViT-L/14.

Both are pre-norm transformers without a final norm. The output is all tokens of the
original tower's last block but one (paper section 3.4).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from blip2_jax.models.sizes import ViTConfig
from blip2_jax.nn.layers import Mlp, MultiHeadAttention, dense, layer_norm, normal
from blip2_jax.nn.stack import Stack

# Statistics of CLIP's training images (Radford et al. 2021); RGB in [0, 1].
IMAGE_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
IMAGE_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def normalize_images(images: UInt8[Array, "B R R 3"]) -> Float[Array, "B R R 3"]:
    """Normalise uint8 images with CLIP's statistics; fp32."""
    return (images.astype(jnp.float32) / 255.0 - IMAGE_MEAN) / IMAGE_STD


def patches(images: Float[Array, "B R R 3"], size: int) -> Float[Array, "B P pixels"]:
    """Cut images into flat patches of `size` x `size` x 3, row by row.

    Raises:
      ValueError: the image size is not a multiple of the patch size.
    """
    batch, height, width, channels = images.shape
    if height % size or width % size:
        raise ValueError(
            f"{height}x{width} images do not divide into patches of {size}"
        )
    grid = images.reshape(
        batch, height // size, size, width // size, size, channels
    ).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, -1, size * size * channels)


class ViTBlock(nn.Module):
    """Pre-norm attention and feed-forward, each with its residual."""

    config: ViTConfig
    dtype: DTypeLike

    def setup(self) -> None:
        """Create submodules and parameters."""
        c = self.config
        self.attention_norm = layer_norm(c.layer_norm_eps, self.dtype)
        self.attention = MultiHeadAttention(
            c.width, c.heads, c.width // c.heads, self.dtype, key_bias=c.key_bias
        )
        self.mlp_norm = layer_norm(c.layer_norm_eps, self.dtype)
        self.mlp = Mlp(c.mlp_dim, c.width, c.activation, self.dtype)

    def __call__(
        self, x: Float[Array, "B S D"], per_layer: None
    ) -> tuple[Float[Array, "B S D"], None]:
        """Run the block."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x)), per_layer


class VisionTransformer(nn.Module):
    """Images to one vector per token: the class token, then the patches."""

    config: ViTConfig
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"

    def setup(self) -> None:
        """Create submodules and parameters."""
        c = self.config
        self.patch_embedding = dense(c.width, self.dtype, use_bias=c.patch_bias)
        self.class_token = self.param("class_token", normal(), (c.width,))
        self.position_embedding = self.param(
            "position_embedding", normal(), (c.num_tokens, c.width)
        )
        if c.pre_norm:
            self.pre_norm = layer_norm(c.layer_norm_eps, self.dtype)
        block = ViTBlock(c, self.dtype, parent=None)
        self.stack = Stack(block, c.depth, self.scan, self.remat)
        example = jnp.zeros((1, 1, c.width), self.dtype)
        self.blocks = self.stack.parameters(self, example)

    def __call__(self, images: Float[Array, "B R R 3"]) -> Float[Array, "B P D"]:
        """Encode normalised images (`normalize_images`) of the configured size.

        Raises:
          ValueError: the images have another size.
        """
        size = self.config.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"this tower takes images [B, {size}, {size}, 3], "
                f"got an array of shape {images.shape}"
            )
        x = patches(images.astype(self.dtype), self.config.patch_size)
        x = self.patch_embedding(x)
        class_token = self.class_token.astype(self.dtype)
        class_token = jnp.broadcast_to(class_token, (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([class_token, x], axis=1)
        x = x + self.position_embedding.astype(self.dtype)
        if self.config.pre_norm:
            x = self.pre_norm(x)
        x, _ = self.stack(self.blocks, x)
        return x
