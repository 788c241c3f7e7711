"""A layer norm and the linear maps that read it, with a cheaper backward pass.

    y  =  (n * scale + shift) W + b  =  n (scale W) + (shift W + b),

n being standardized. As the left side says it is computed. As the right side says it
is differentiated, the norm's weights folded into the map's: gradients by `scale` and
`shift` come from the gradient by the folded weights. Where nothing before the norm is
trained, as behind a frozen image encoder, no product then takes gradients back to the
image's tokens: of the three products that each map costs a training step, two remain.
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
    """Standardized vectors, and the weights of their norm, yet to be applied."""

    standard: Float[Array, "... D"]
    scale: Float[Array, " D"]
    shift: Float[Array, " D"]

    def applied(self) -> Float[Array, "... D"]:
        """What a layer norm returns."""
        wide = self.standard.astype(jnp.float32)  # its weights may be narrow
        return (wide * self.scale + self.shift).astype(self.standard.dtype)


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
            epsilon=self.epsilon,
            dtype=self.dtype,
            use_fast_variance=False,
            use_scale=False,
            use_bias=False,
        )

    def __call__(self, x: Float[Array, "... D"]) -> Normed:
        """Its standardized part is in `dtype`."""
        return Normed(self.standardize(x), self.scale, self.bias)


class FoldedDense(nn.Module):
    """A linear map of `Normed` vectors, in `dtype`; parameters as of `layers.dense`."""

    features: int
    dtype: DTypeLike
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: Normed) -> Float[Array, "... outputs"]:
        shape = (x.standard.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return _product(x, kernel) + bias.astype(self.dtype)


@jax.custom_vjp
def _product(
    x: Normed, kernel: Float[Array, "D outputs"]
) -> Float[Array, "... outputs"]:
    return einsum("...d,de->...e", x.applied(), kernel.astype(x.standard.dtype))


def _forward(x: Normed, kernel: Array) -> tuple[Array, tuple[Normed, Array]]:
    return _product(x, kernel), (x, kernel)


def _backward(kept: tuple[Normed, Array], by_y: Array) -> tuple[Normed, Array]:
    x, kernel = kept
    rows = as_rows(by_y)
    by_folded = einsum_fp32("rd,re->de", as_rows(x.standard), rows)
    total = rows.sum(axis=0, dtype=jnp.float32)
    folded = (x.scale[:, None] * kernel).astype(by_y.dtype)
    by_kernel = x.scale[:, None] * by_folded + x.shift[:, None] * total
    by_x = Normed(
        einsum("...e,de->...d", by_y, folded),  # dead code where nobody asks for it
        (by_folded * kernel).sum(axis=1).astype(x.scale.dtype),
        (kernel * total).sum(axis=1).astype(x.shift.dtype),
    )
    return by_x, by_kernel.astype(kernel.dtype)


_product.defvjp(_forward, _backward)
