"""A layer norm whose weights are folded into the linear maps that read it.

    (n * scale + shift) W + b  =  n (scale W) + (shift W + b),

n being standardized. The gradients by `scale` and `shift` then come from the gradient
by the folded weights. Where nothing before the norm is trained, as behind a frozen
image encoder, no product has to take gradients back to the image's tokens: of the three
products that each map costs a training step, two remain.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from blip2_jax.models.precision import precision_of


class Normed(NamedTuple):
    """Standardized vectors, and the weights of their norm, yet to be applied (fp32)."""

    standard: Float[Array, "... D"]
    scale: Float[Array, " D"]
    shift: Float[Array, " D"]

    def applied(self) -> Float[Array, "... D"]:
        """What a layer norm that is not folded returns."""
        return (self.standard * self.scale + self.shift).astype(self.standard.dtype)


class FoldedLayerNorm(nn.Module):
    """Layer norm, computed in fp32, that leaves its weights to `FoldedDense`.

    Parameters are named as those of `flax.linen.LayerNorm`: `scale` and `bias`.
    """

    width: int
    epsilon: float
    dtype: DTypeLike

    def setup(self) -> None:
        self.scale = self.param("scale", nn.initializers.ones, (self.width,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.width,))
        self.standardize = nn.remat(nn.LayerNorm)(
            epsilon=self.epsilon, dtype=self.dtype, use_fast_variance=False,
            use_scale=False, use_bias=False,
        )  # fmt: skip

    def __call__(self, x: Float[Array, "... D"]) -> Normed:
        """Its standardized part is in `dtype`."""
        return Normed(self.standardize(x), self.scale, self.bias)


class FoldedDense(nn.Module):
    """A linear map of `Normed` vectors, in `dtype`; parameters as of `layers.dense`."""

    features: int
    dtype: DTypeLike
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: Normed) -> Float[Array, "... E"]:
        shape = (x.standard.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        folded = (x.scale[:, None] * kernel).astype(self.dtype)
        shift = (x.shift[:, None] * kernel).sum(axis=0) + bias
        product = jnp.dot(x.standard, folded, precision=precision_of(self.dtype))
        return product + shift.astype(self.dtype)
