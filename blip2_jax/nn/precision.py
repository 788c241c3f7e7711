"""One rule of matmul precision, for every product of this package.

Operands keep their dtype, sums are fp32. A product of fp32 operands is asked for at
HIGHEST precision: unasked, a TPU computes it in bf16 and a GPU in TF32.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

PRECISIONS = ("bfloat16", "float32")  # in which models compute
# Names products that a rule of their own, or a checkpoint, hides from the policies of
# rematerialisation, for those that keep products.
PRODUCT = "product"


def precision_of(dtype: DTypeLike) -> jax.lax.Precision | None:
    """HIGHEST for fp32 operands, the backend's only way for narrower ones."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def einsum(spec: str, left: Array, right: Array) -> Array:
    """`jnp.einsum` of two operands of one dtype; the result has that dtype."""
    return jnp.einsum(spec, left, right, precision=precision_of(left.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_fp32(spec: str, left: Array, right: Array) -> Float[Array, ...]:
    """`jnp.einsum` of two operands of one dtype with an fp32 result.

    Attention scores and logits: bf16 inputs, fp32 output. Without the rule below the
    backward pass would multiply fp32 cotangents, several times slower.

    Args:
      spec: "left,right->result"; every letter stands in two of the three terms.
      left: first operand.
      right: second operand, of the same dtype.
    """
    precision = precision_of(left.dtype)
    return jnp.einsum(
        spec, left, right, precision=precision, preferred_element_type=jnp.float32
    )


def _forward(spec: str, left: Array, right: Array) -> tuple[Array, tuple[Array, Array]]:
    return einsum_fp32(spec, left, right), (left, right)


def _backward(
    spec: str, operands: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    left, right = operands
    terms, result = spec.split("->")
    left_term, right_term = terms.split(",")
    cotangent = cotangent.astype(left.dtype)
    return (
        einsum(f"{result},{right_term}->{left_term}", cotangent, right),
        einsum(f"{left_term},{result}->{right_term}", left, cotangent),
    )


einsum_fp32.defvjp(_forward, _backward)


def as_rows(x: Float[Array, "... D"]) -> Float[Array, "rows D"]:
    """All vectors of an array, one below the other.

    XLA's CPU backend turns an operand round that is summed over several axes, and takes
    a slower product; over one it does not.
    """
    return x.reshape(-1, x.shape[-1])


def linear_map(
    x: Float[Array, "... inputs"],
    kernel: Float[Array, "inputs outputs"],
    *_: Any,
    **__: Any,
) -> Float[Array, "... outputs"]:
    """`x @ kernel`, for `flax.linen.Dense(dot_general=...)`, whose arguments it takes.

    The kernel's gradient is asked for as it is stored, [K, N]. As jax derives it, it is
    a product [N, K] turned round, for which XLA's CPU backend copies the larger operand
    and takes a slower product.
    """
    return checkpoint_name(_linear_map(x, kernel), PRODUCT)


@jax.custom_vjp
def _linear_map(x: Array, kernel: Array) -> Array:
    return einsum("...k,kn->...n", x, kernel)


def _linear_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _linear_map(x, kernel), (x, kernel)


def _linear_backward(operands: tuple[Array, Array], by_y: Array) -> tuple[Array, Array]:
    x, kernel = operands
    # Flat only here: what the backward pass keeps is `x` itself, once for all its maps.
    by_kernel = einsum("rk,rn->kn", as_rows(x), as_rows(by_y))
    return einsum("...n,kn->...k", by_y, kernel), by_kernel


_linear_map.defvjp(_linear_forward, _linear_backward)
