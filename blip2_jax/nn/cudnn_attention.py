"""Attention by cuDNN's fused kernel on a GPU.

`fused_attention` decides where it is used. On a mesh, each device runs the kernel for
its own rows and heads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def cudnn_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    mask: Bool[Array, ...] | None,
    bias: Float[Array, ...] | None,
    scale: float,
    implementation: Any = "cudnn",
) -> Float[Array, "B T H K"]:
    """Compute attention with cuDNN's kernel, where `fused_attention.kernel_of` says so.

    Args:
      query: queries, in half precision like `key` and `value`.
      key: keys.
      value: values.
      mask: True = may attend; None = no mask.
      bias: added to the scores, rounded to the compute dtype; None = no bias.
      scale: factor of the scores.
      implementation: of `jax.nn.dot_product_attention`.
    """
    run = functools.partial(
        jax.nn.dot_product_attention, scale=scale, implementation=implementation
    )
    lengths = (query.shape[1], key.shape[1])
    if mask is None and bias is None:
        if any(length % 2 for length in lengths):
            return _run_odd(run, query, key, value)
        return run(query, key, value)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*_leading(mask), *lengths))
    if bias is not None:
        bias = bias.astype(query.dtype)
        bias = jnp.broadcast_to(bias, (*_leading(bias), *lengths))
    return run(query, key, value, bias, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run_odd(run: Callable[..., Array], *arrays: Array) -> Array:
    """Call `run`; pad to even lengths only when the result is differentiated.

    The kernel's forward pass takes every length, its backward pass even lengths.
    """
    return run(*arrays)


def _run_even(
    run: Callable[..., Array], query: Array, key: Array, value: Array
) -> Array:
    """Pad odd lengths by one position that is not attended to, and cut it off."""

    def pad(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

    def lengths(x: Array) -> Array:
        return jnp.full(x.shape[0], x.shape[1], jnp.int32)

    context = run(
        pad(query),
        pad(key),
        pad(value),
        query_seq_lengths=lengths(query),
        key_value_seq_lengths=lengths(key),
    )
    return context[:, : query.shape[1]]


def _forward(run: Callable[..., Array], *arrays: Array) -> tuple[Array, Any]:
    return jax.vjp(functools.partial(_run_even, run), *arrays)


def _backward(
    run: Callable[..., Array], pullback: Any, cotangent: Array
) -> tuple[Array, ...]:
    return pullback(cotangent)


_run_odd.defvjp(_forward, _backward)


def _leading(restriction: Array) -> tuple[int, ...]:
    """Return the batch and head axes of a mask or bias, 1 where it has none."""
    return (1, 1, *restriction.shape)[-4:-2]
