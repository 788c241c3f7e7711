"""The frozen image towers: EVA-CLIP, CLIP, SigLIP and DINOv2.

All are pre-norm transformers; `ViTConfig` has the differences. The output of EVA-CLIP
and CLIP is that of the original tower's last block but one (paper section 3.4), the
output of SigLIP and DINOv2 that of all blocks and the final norm.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from blip2_jax.models.sizes import IMAGE_STATISTICS, ViTConfig
from blip2_jax.nn.layers import Mlp, MultiHeadAttention, dense, layer_norm, normal
from blip2_jax.nn.stack import Stack


def normalize_images(
    images: UInt8[Array, "B R R 3"], statistics: str
) -> Float[Array, "B R R 3"]:
    """Normalise uint8 images with the mean and deviation of `statistics`; fp32.

    Args:
      images: RGB.
      statistics: `ViTConfig.statistics` of the image encoder.
    """
    mean, deviation = np.array(IMAGE_STATISTICS[statistics], np.float32)
    return (images.astype(jnp.float32) / 255.0 - mean) / deviation


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


class LayerScale(nn.Module):
    """Multiply every channel by a parameter (Touvron et al. 2021)."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Scale the channels."""
        scale = self.param("scale", nn.initializers.ones, (self.width,))
        return x * scale.astype(x.dtype)


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
        self.mlp = Mlp(c.mlp_dim, c.width, c.activation, self.dtype, c.gated_mlp)
        if c.layer_scale:
            self.attention_scale = LayerScale(c.width)
            self.mlp_scale = LayerScale(c.width)

    def __call__(
        self, x: Float[Array, "B S D"], per_layer: None
    ) -> tuple[Float[Array, "B S D"], None]:
        """Run the block."""
        attended = self.attention(self.attention_norm(x))
        if self.config.layer_scale:
            attended = self.attention_scale(attended)
        x = x + attended
        hidden = self.mlp(self.mlp_norm(x))
        if self.config.layer_scale:
            hidden = self.mlp_scale(hidden)
        return x + hidden, per_layer


class VisionTransformer(nn.Module):
    """Images to one vector per token: the class token, registers, then the patches."""

    config: ViTConfig
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"

    def setup(self) -> None:
        """Create submodules and parameters."""
        c = self.config
        self.patch_embedding = dense(c.width, self.dtype, use_bias=c.patch_bias)
        if c.class_token:
            self.class_token = self.param("class_token", normal(), (c.width,))
        if c.num_registers:
            shape = (c.num_registers, c.width)
            self.register_tokens = self.param("register_tokens", normal(), shape)
        self.position_embedding = self.param(
            "position_embedding", normal(), (c.num_positions, c.width)
        )
        if c.pre_norm:
            self.pre_norm = layer_norm(c.layer_norm_eps, self.dtype)
        block = ViTBlock(c, self.dtype, parent=None)
        self.stack = Stack(block, c.depth, self.scan, self.remat)
        example = jnp.zeros((1, 1, c.width), self.dtype)
        self.blocks = self.stack.parameters(self, example)
        if c.final_norm:
            self.final_norm = layer_norm(c.layer_norm_eps, self.dtype)

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
        x = self._embed(images)
        if self.config.pre_norm:
            x = self.pre_norm(x)
        x, _ = self.stack(self.blocks, x)
        return self.final_norm(x) if self.config.final_norm else x

    def _embed(self, images: Float[Array, "B R R 3"]) -> Float[Array, "B P D"]:
        """Embed images as tokens with positions; registers have none.

        Pixels right of and below the last whole patch are not read, as by a convolution
        without padding (SigLIP so400m: 384 pixels, patches of 14).
        """
        c = self.config
        side = c.image_size - c.image_size % c.patch_size
        pixels = images[:, :side, :side].astype(self.dtype)
        x = self.patch_embedding(patches(pixels, c.patch_size))
        if c.class_token:
            x = self._insert(x, self.class_token, 0)
        x = x + self.position_embedding.astype(self.dtype)
        if c.num_registers:
            x = self._insert(x, self.register_tokens, int(c.class_token))
        return x

    def _insert(
        self, x: Float[Array, "B S D"], tokens: Float[Array, "... D"], start: int
    ) -> Float[Array, "B P D"]:
        """Insert the same token or tokens into every row, at position `start`."""
        tokens = tokens.astype(self.dtype).reshape(-1, x.shape[-1])
        tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape))
        return jnp.concatenate([x[:, :start], tokens, x[:, start:]], axis=1)
