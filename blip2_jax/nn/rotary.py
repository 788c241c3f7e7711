"""Rotary positions: queries and keys are rotated by angles that grow with the position.

Su et al. 2021. The score of a query and a key then depends on their distance alone.
"""

from __future__ import annotations

import math

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


def stretch_slow_pairs(
    frequency: Float32[np.ndarray, " half"],
    theta: float,
    factor: float,
    low: float,
    high: float,
    positions: int,
    truncate: bool = True,
) -> Float32[np.ndarray, " half"]:
    """Divide low frequencies by `factor`, as YaRN does (Peng et al. 2023, section 3.2).

    Args:
      frequency: from `frequencies`.
      theta: its base.
      factor: divisor of the lowest frequencies.
      low: pairs that turn less often than this within `positions` are divided.
      high: pairs that turn more often are kept; between the two the change is linear in
        the number of the pair.
      positions: length of the context before it was extended.
      truncate: round the numbers of the two pairs outwards.
    """
    width = 2 * len(frequency)

    def pair(turns: float) -> float:
        """Return the number of the pair that turns so often within `positions`.

        turns = positions / (2 pi) * theta ** (-2 pair / width).
        """
        full = positions / (2 * math.pi)
        return width * math.log(full / turns) / (2 * math.log(theta))

    first, last = pair(high), pair(low)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0.0), min(last, width - 1.0)
    span = last - first or 0.001
    divided = np.clip((np.arange(width // 2) - first) / span, 0, 1)
    return (frequency * (1 - divided + divided / factor)).astype(np.float32)


def rotation(
    positions: Int[Array, "B T"],
    frequency: Float32[np.ndarray, " half"],
    scale: float = 1.0,
) -> Rotation:
    """Return fp32 cosines and sines of the angles of each position, times `scale`."""
    angles = positions[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x: Float[Array, "B T H K"], by: Rotation) -> Float[Array, "B T H K"]:
    """Rotate dimensions i and half + i of every head as one pair, in fp32.

    Dimensions from 2 * half on stay as they are.
    """
    cos, sin = (part[:, :, None] for part in by)
    half = cos.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin, rest)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
