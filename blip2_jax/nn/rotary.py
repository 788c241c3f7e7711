"""Rotary positions: queries and keys are rotated by angles that grow with the position.

Su et al. 2021. The score of a query and a key then depends on their distance alone.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

# Cosines and sines of the angles of each position.
Rotation = tuple[Float[Array, "B T half"], Float[Array, "B T half"]]


def frequencies(head_width: int, theta: float) -> Float32[np.ndarray, " half"]:
    """Return the angle per position of each pair of dimensions: theta^(-2i / K)."""
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / head_width
    return (1 / np.float32(theta) ** exponents).astype(np.float32)


def stretch_low_frequencies(
    frequency: Float32[np.ndarray, " half"],
    factor: float,
    low: float,
    high: float,
    positions: int,
) -> Float32[np.ndarray, " half"]:
    """Divide low frequencies by `factor`, as Llama 3.1 does for longer contexts.

    Args:
      frequency: from `frequencies`.
      factor: divisor of the lowest frequencies.
      low: pairs that turn less often than this within `positions` are divided.
      high: pairs that turn more often are kept; between the two the change is linear.
      positions: length of the context before it was extended.
    """
    turns = positions * frequency / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return ((1 - kept) * frequency / factor + kept * frequency).astype(np.float32)


def rotation(
    positions: Int[Array, "B T"], frequency: Float32[np.ndarray, " half"]
) -> Rotation:
    """Return fp32 cosines and sines of the angles of each position."""
    angles = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B T H K"], by: Rotation) -> Float[Array, "B T H K"]:
    """Rotate dimensions i and K / 2 + i of every head as one pair, in fp32."""
    cos, sin = (part[:, :, None] for part in by)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
