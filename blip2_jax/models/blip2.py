"""The base of both stages' models: image tower, `ln_vision`, queries, Q-Former."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.qformer.projector import Projector
from blip2_jax.models.qformer.qformer import ImageKeyValues, QFormer
from blip2_jax.models.sizes import FeaturesConfig
from blip2_jax.models.vision.vit import VisionTransformer, normalize_images
from blip2_jax.nn.folded_norm import FoldedLayerNorm
from blip2_jax.nn.layers import INITIAL_STD, normal


class Blip2Base(nn.Module):
    """The parts from image to Q-Former; each stage adds its heads.

    Attributes:
      config: sizes.
      dtype: compute dtype; parameters are fp32.
      scan: scan stacked layers instead of unrolling them.
      remat: rematerialisation policy of all blocks (`nn.stack.REMAT_POLICIES`).
    """

    config: Blip2Config
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"

    def setup(self) -> None:
        """Create submodules and parameters."""
        vision, qformer = self.config.vision, self.config.qformer
        if not isinstance(vision, FeaturesConfig):
            self.visual_encoder = VisionTransformer(
                vision, self.dtype, self.scan, self.remat
            )
        self.ln_vision = FoldedLayerNorm(
            vision.width, self.config.ln_vision_eps, self.dtype
        )
        if self.config.projector is not None:
            self.projector = Projector(
                self.config.projector, vision.num_patches, self.dtype
            )
            return
        shape = (qformer.num_queries, qformer.width)
        self.query_tokens = self.param("query_tokens", normal(), shape)
        self.qformer = QFormer(qformer, self.dtype, self.reads_text, self.remat)

    @property
    def reads_text(self) -> bool:
        """Return True if the Q-Former has a text branch."""
        return True

    def encode_image(self, images: Shaped[Array, "B ..."]) -> Float[Array, "B P D"]:
        """Compute image features with the frozen tower, before `ln_vision`.

        Args:
          images: [B, R, R, 3], uint8 or normalised floats; or features [B, P, D] from
            an earlier call, which are only cast. A model with a `FeaturesConfig`
            takes only features.

        Raises:
          ValueError: images or features do not have the model's size.
        """
        vision = self.config.vision
        if isinstance(vision, FeaturesConfig):
            if images.shape[1:] != (vision.num_tokens, vision.width):
                raise ValueError(
                    f"this model takes features [B, {vision.num_tokens}, "
                    f"{vision.width}], got an array of shape {images.shape}"
                )
            return images.astype(self.dtype)
        if images.ndim == 3:
            return images.astype(self.dtype)
        if images.dtype == jnp.uint8:
            images = normalize_images(images, vision.statistics)
        return self.visual_encoder(images)

    def image_keys_values(self, features: Float[Array, "B P D"]) -> ImageKeyValues:
        """Apply `ln_vision` and compute the cross-attention keys and values."""
        return self.qformer.image_keys_values(self.ln_vision(features))

    def attention_gates(self) -> tuple[Float[Array, "1 H Q P"], ...]:
        """Return factors 1 of the cross-attention weights of one image, per block."""
        self._check_attends()
        vision, qformer = self.config.vision, self.config.qformer
        shape = (1, qformer.heads, qformer.num_queries, vision.num_tokens)
        blocks = range(0, qformer.depth, qformer.cross_attention_every)
        return tuple(jnp.ones(shape, jnp.float32) for _ in blocks)

    def attention_maps(
        self, features: Float[Array, "B P D"]
    ) -> tuple[Float[Array, "B H Q P"], ...]:
        """Return the queries' fp32 attention to the image, one array per block."""
        self._check_attends()
        image = self.image_keys_values(features)
        return self.qformer.attention_maps(self.query_tokens, image)

    def _check_attends(self) -> None:
        if self.config.projector is not None:
            raise ValueError("a projector has no attention to the image")


def init_params(model: Blip2Base, key: PRNGKeyArray) -> PyTree:
    """Draw fp32 parameters; works under `jax.eval_shape` at full size."""
    vision = model.config.vision
    shape: tuple[int, ...]
    if isinstance(vision, FeaturesConfig):
        shape = (1, vision.num_tokens, vision.width)
    else:
        shape = (1, vision.image_size, vision.image_size, 3)
    images = jnp.zeros(shape, model.dtype)
    params = model.init(key, images)["params"]
    std = model.config.qformer.initial_std
    return params if std == INITIAL_STD else _rescale(params, std / INITIAL_STD)


@functools.cache
def parameter_shapes(model: Blip2Base) -> PyTree:
    """Return the shape of every parameter, traced once per model without allocation.

    The tree is shared by all callers; do not change it.
    """
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def _rescale(params: PyTree, factor: float) -> PyTree:
    """Multiply the kernels of what `QFormerConfig.initial_std` is for."""

    def rescale(path: tuple[jax.tree_util.DictKey, ...], leaf: Array) -> Array:
        module = path[0].key
        is_new = module in ("qformer", "projector") or module.endswith("projection")
        return leaf * factor if is_new and path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(rescale, params)
