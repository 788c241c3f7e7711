"""Matmuls with the precision rule of this package.

Operands keep their dtype and sums are fp32. Matmuls of fp32 operands run at HIGHEST
precision; by default a TPU computes them in bf16 and a GPU in TF32.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

PRECISIONS = ("bfloat16", "float32")  # compute dtypes of the models
# `checkpoint_name` of matmul outputs inside a nested checkpoint or custom rule, where
# rematerialisation policies cannot see the matmul itself.
MATMUL_OUTPUT = "matmul_output"


def precision_of(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Return HIGHEST for fp32 operands and the backend's default for narrower ones."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def einsum(spec: str, left: Array, right: Array) -> Array:
    """Compute `jnp.einsum` of two operands of one dtype; the result has that dtype."""
    return jnp.einsum(spec, left, right, precision=precision_of(left.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_fp32(spec: str, left: Array, right: Array) -> Float[Array, ...]:
    """Compute `jnp.einsum` of two operands of one dtype with an fp32 result.

    Used for attention scores and logits. The custom gradient casts the fp32 cotangent
    to the operands' dtype; otherwise the backward matmuls would run in fp32, several
    times slower.

    Args:
      spec: "left,right->result"; every letter appears in two of the three terms.
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
    """Flatten all axes but the last."""
    return x.reshape(-1, x.shape[-1])
