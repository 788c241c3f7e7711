"""A layer norm followed by dense layers, with a cheaper backward pass.

With n the standardized input, W and b the dense layer's parameters,

    y  =  (n * scale + shift) W + b  =  n (scale W) + (shift W + b).

The forward pass computes the left side. The backward pass differentiates the right
side, where the norm's weights are folded into the dense layer's: the gradients of
`scale` and `shift` follow from the gradient of the folded weights. Behind a frozen
image encoder, where n needs no gradient, each dense layer then costs a training step
two matmuls instead of three.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from blip2_jax.nn.precision import as_rows, einsum, einsum_fp32


class Normed(NamedTuple):
    """Standardized vectors and the layer-norm weights still to be applied."""

    standard: Float[Array, "... D"]
    scale: Float[Array, " D"]
    shift: Float[Array, " D"]

    def applied(self) -> Float[Array, "... D"]:
        """Apply the weights: the output of a layer norm."""
        wide = self.standard.astype(jnp.float32)
        return (wide * self.scale + self.shift).astype(self.standard.dtype)


class FoldedLayerNorm(nn.Module):
    """Layer norm in fp32 that leaves its weights to be applied by `FoldedDense`.

    Its parameters are `scale` and `bias`, as in `flax.linen.LayerNorm`.
    """

    width: int
    epsilon: float
    dtype: DTypeLike

    def setup(self) -> None:
        """Create submodules and parameters."""
        self.scale = self.param("scale", nn.initializers.ones, (self.width,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.width,))
        self.standardize = nn.remat(nn.LayerNorm)(
            epsilon=self.epsilon,
            dtype=self.dtype,
            use_fast_variance=False,
            use_scale=False,
            use_bias=False,
        )

    def __call__(self, x: Float[Array, "... D"]) -> Normed:
        """Standardize `x` in fp32 and return it in `dtype` with the norm's weights."""
        return Normed(self.standardize(x), self.scale, self.bias)


class FoldedDense(nn.Module):
    """Dense layer over `Normed` vectors; same parameters as `layers.dense`."""

    features: int
    dtype: DTypeLike
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: Normed) -> Float[Array, "... outputs"]:
        """Apply the norm's weights and the dense layer."""
        shape = (x.standard.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return _norm_then_matmul(x, kernel) + bias.astype(self.dtype)


@jax.custom_vjp
def _norm_then_matmul(
    x: Normed, kernel: Float[Array, "D outputs"]
) -> Float[Array, "... outputs"]:
    return einsum("...d,df->...f", x.applied(), kernel.astype(x.standard.dtype))


def _forward(x: Normed, kernel: Array) -> tuple[Array, tuple[Normed, Array]]:
    return _norm_then_matmul(x, kernel), (x, kernel)


def _backward(residuals: tuple[Normed, Array], d_y: Array) -> tuple[Normed, Array]:
    x, kernel = residuals
    d_rows = as_rows(d_y)
    d_folded = einsum_fp32("rd,rf->df", as_rows(x.standard), d_rows)
    d_sum = d_rows.sum(axis=0, dtype=jnp.float32)
    folded = (x.scale[:, None] * kernel).astype(d_y.dtype)
    d_kernel = x.scale[:, None] * d_folded + x.shift[:, None] * d_sum
    d_x = Normed(
        einsum("...f,df->...d", d_y, folded),  # removed by XLA where n is frozen
        (d_folded * kernel).sum(axis=1).astype(x.scale.dtype),
        (kernel * d_sum).sum(axis=1).astype(x.shift.dtype),
    )
    return d_x, d_kernel.astype(kernel.dtype)


_norm_then_matmul.defvjp(_forward, _backward)
