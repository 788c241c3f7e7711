"""Dropout whose random bits depend only on the key and the element's global index.

The same elements are dropped on any mesh: the bits are a hash of the index in the
global array, so each shard computes its own without communication. Two rounds of a
32-bit finalizer (MurmurHash3, Appleby) cost far less than threefry.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32


def dropout(
    x: Float[Array, ...], rate: float, key: PRNGKeyArray | None
) -> Float[Array, ...]:
    """Zero elements with probability `rate` and scale the rest by 1 / (1 - rate).

    Args:
      x: any shape and float dtype.
      rate: probability of a zero, in [0, 1).
      key: JAX key; None (evaluation) returns `x`.

    Raises:
      ValueError: `rate` is not in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout rate must lie in [0, 1), got {rate}")
    if key is None or rate == 0.0:
        return x
    return _drop(x, rate, key)


# Checkpointed so that the backward pass hashes again instead of storing the mask.
@functools.partial(jax.checkpoint, static_argnums=(1,))
def _drop(x: Array, rate: float, key: PRNGKeyArray) -> Array:
    return jnp.where(keep_mask(x.shape, rate, key), x / (1.0 - rate), 0).astype(x.dtype)


def keep_mask(
    shape: tuple[int, ...], rate: float, key: PRNGKeyArray
) -> Bool[Array, ...]:
    """Draw a mask of `shape` that is True with probability 1 - rate."""
    words = jax.random.key_data(key).astype(jnp.uint32).ravel()
    bits = _linear_index(shape)
    for word in (words[0], words[-1]):
        bits = _finalize(bits ^ word)
    return bits >= jnp.uint32(round(rate * 2**32))


def _linear_index(shape: tuple[int, ...]) -> UInt32[Array, ...]:
    """Compute the row-major index of each element, modulo 2**32."""
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        iota = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index = index + iota * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return index


def _finalize(bits: UInt32[Array, ...]) -> UInt32[Array, ...]:
    """Apply the 32-bit finalizer of MurmurHash3."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def split_key(key: PRNGKeyArray | None, count: int) -> list[PRNGKeyArray | None]:
    """Split a key into `count` keys; None (no dropout) gives `count` Nones."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def some_tokens(
    features: Float[Array, "B P D"], count: int, key: PRNGKeyArray
) -> Float[Array, "B count D"]:
    """Draw `count` of each image's tokens without replacement, in random order."""
    order = jax.random.uniform(key, features.shape[:2]).argsort(axis=1)[:, :count]
    return jnp.take_along_axis(features, order[..., None], axis=1)
