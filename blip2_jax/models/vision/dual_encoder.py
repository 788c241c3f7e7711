"""An image tower and a text tower trained together by token-wise contrast.

This trains the image encoder of the shapes world from images and captions alone. The
similarity of a pair is the mean over the text's tokens of the largest cosine with any
image token (late interaction, Yao et al. 2021). Every image token, and not only the
class token, then has to describe what is at its position.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from blip2_jax.models.sizes import ViTConfig
from blip2_jax.models.vision.vit import VisionTransformer, normalize_images
from blip2_jax.nn import masks
from blip2_jax.nn.layers import (
    INITIAL_STD,
    Mlp,
    MultiHeadAttention,
    dense,
    layer_norm,
    normal,
    scale_matrices,
)
from blip2_jax.nn.precision import einsum_fp32
from blip2_jax.nn.similarity import max_query_similarity, unit_vectors
from blip2_jax.nn.stack import Stack

# A caption differs from its near-duplicate in one word of twenty. Only a low
# temperature makes that difference of means count.
INITIAL_TEMPERATURE = 0.015
# Initial deviations of the image positions and of the patch kernel. The blocks add
# values of deviation about 20 to each token, so even positions that start at 10 end as
# a twentieth of the variance of the shapes world's tokens.
POSITION_STD = 10.0
PATCH_STD = 0.04


@dataclasses.dataclass(frozen=True)
class TextTowerConfig:
    """Sizes of a pre-norm transformer over token ids, bidirectional unless `causal`.

    With depth 0 the tower is a table of words without context: each image token that
    matches a word has to name that attribute by itself, and the image tower learns
    directions for "red" and for "ring", not for red rings. With a window as well, a
    word stands for the mean of the words around it: one image token then has to name
    all of "top left small red ring", each word by itself.

    Attributes:
      vocab_size: number of words.
      width: width of the tower.
      depth: number of blocks.
      heads: attention heads.
      mlp_dim: inner width of the feed-forward.
      window: with depth 0, number of words averaged on either side.
      max_positions: longest text.
      layer_norm_eps: epsilon of the layer norms.
      activation: of the feed-forward.
      causal: a word attends only to itself and earlier words, as in CLIP.
    """

    vocab_size: int
    width: int = 128
    depth: int = 2
    heads: int = 4
    mlp_dim: int = 256
    window: int = 0
    max_positions: int = 64
    layer_norm_eps: float = 1e-6
    activation: str = "gelu"
    causal: bool = False


class TextBlock(nn.Module):
    """Pre-norm attention over the real tokens, and feed-forward."""

    config: TextTowerConfig
    dtype: DTypeLike

    def setup(self) -> None:
        """Create submodules and parameters."""
        c = self.config
        self.attention_norm = layer_norm(c.layer_norm_eps, self.dtype)
        self.attention = MultiHeadAttention(
            c.width, c.heads, c.width // c.heads, self.dtype
        )
        self.mlp_norm = layer_norm(c.layer_norm_eps, self.dtype)
        self.mlp = Mlp(c.mlp_dim, c.width, c.activation, self.dtype)

    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B 1 #T T"], per_layer: None
    ) -> tuple[Float[Array, "B T D"], None]:
        """Run the block."""
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.mlp(self.mlp_norm(x)), per_layer


class TextTower(nn.Module):
    """Token ids to one vector per token."""

    config: TextTowerConfig
    dtype: DTypeLike = jnp.float32
    scan: bool = True

    def setup(self) -> None:
        """Create submodules and parameters."""
        c = self.config
        self.word = self.param("word", normal(), (c.vocab_size, c.width))
        if not c.depth:
            return
        self.position = self.param("position", normal(), (c.max_positions, c.width))
        block = TextBlock(c, self.dtype, parent=None)
        self.stack = Stack(block, c.depth, self.scan)
        example = jnp.zeros((1, 1, c.width), self.dtype)
        self.blocks = self.param(
            "blocks", self.stack.init, example, jnp.ones((1, 1, 1, 1), bool)
        )

    def __call__(
        self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Encode texts; `mask` is True at real tokens."""
        c = self.config
        if not c.depth:
            return window_means(self.word[ids], mask, c.window).astype(self.dtype)
        x = self.word[ids] + self.position[: ids.shape[1]]
        attended = masks.causal(mask) if c.causal else masks.padding(mask)
        x, _ = self.stack(self.blocks, x.astype(self.dtype), attended)
        return x


def window_means(
    x: Float[Array, "B T D"], mask: Bool[Array, "B T"], radius: int
) -> Float[Array, "B T D"]:
    """Average each token with the real tokens at most `radius` positions away."""
    position = jnp.arange(x.shape[1])
    near = (jnp.abs(position[:, None] - position) <= radius) & mask[:, None]
    near = near | jnp.eye(x.shape[1], dtype=bool)
    weights = near / near.sum(axis=-1, keepdims=True)
    return einsum_fp32("bts,bsd->btd", weights, x)


class DualEncoder(nn.Module):
    """Both towers with their norms and projections into one space of width C."""

    vision: ViTConfig
    text: TextTowerConfig
    projection_dim: int = 64
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"

    def setup(self) -> None:
        """Create submodules and parameters."""
        self.visual_encoder = VisionTransformer(
            self.vision, self.dtype, self.scan, self.remat
        )
        self.text_encoder = TextTower(self.text, self.dtype, self.scan)
        self.vision_norm = layer_norm(self.vision.layer_norm_eps, self.dtype)
        self.text_norm = layer_norm(self.text.layer_norm_eps, self.dtype)
        self.vision_projection = dense(self.projection_dim, self.dtype)
        self.text_projection = dense(self.projection_dim, self.dtype)
        initial = nn.initializers.constant(INITIAL_TEMPERATURE)
        self.temperature = self.param("temperature", initial, ())

    def encode_image(self, images: Shaped[Array, "B R R 3"]) -> Float[Array, "B P C"]:
        """Compute unit vectors of image tokens; uint8 images are normalised first."""
        if images.dtype == jnp.uint8:
            images = normalize_images(images, self.vision.statistics)
        hidden = self.vision_norm(self.visual_encoder(images))
        return unit_vectors(self.vision_projection(hidden))

    def encode_text(
        self, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]
    ) -> Float[Array, "B T C"]:
        """Compute unit vectors of text tokens, including padding."""
        hidden = self.text_norm(self.text_encoder(ids, mask))
        return unit_vectors(self.text_projection(hidden))

    def __call__(
        self,
        images: Shaped[Array, "B R R 3"],
        ids: Int[Array, "texts T"],
        mask: Bool[Array, "texts T"],
    ) -> Float[Array, "B texts"]:
        """Compute the fp32 similarity, in [-1, 1], of every image to every text."""
        words = self.encode_text(ids, mask)
        best = max_query_similarity(
            self.encode_image(images), words.reshape(-1, words.shape[-1])
        )
        best = jnp.where(mask, best.reshape(-1, *mask.shape), 0.0)
        return best.sum(axis=-1) / mask.sum(axis=-1)


def init_dual_encoder(
    model: DualEncoder, key: PRNGKeyArray, std: float = INITIAL_STD
) -> PyTree:
    """Draw fp32 parameters; works under `jax.eval_shape`.

    Args:
      model: the two towers.
      key: random key.
      std: deviation of all matrices but the patch embedding (`PATCH_STD`); the image
        positions have `POSITION_STD`.
    """
    size = model.vision.image_size
    images = jnp.zeros((1, size, size, 3), model.dtype)
    ids, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    params = scale_matrices(
        model.init(key, images, ids, mask)["params"],
        lambda path: (PATCH_STD if "patch_embedding" in path else std) / INITIAL_STD,
    )
    tower = params["visual_encoder"]
    positions = tower["position_embedding"] * (POSITION_STD / INITIAL_STD)
    return params | {"visual_encoder": tower | {"position_embedding": positions}}
