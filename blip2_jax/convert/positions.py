"""Position embeddings for another image size, as the original resizes them.

Bicubic with a = -0.75 and clamped borders: torch's `interpolate`, which differs from
`jax.image.resize` (a = -0.5). EVA's loader aligns pixel centres, CLIP's corners.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from blip2_jax.convert.files.lazy_arrays import LazyArrays
from blip2_jax.models.presets import FeaturesConfig, ViTConfig

CUBIC = -0.75
POSITIONS = "visual_encoder/position_embedding"  # our path
Arrays = Mapping[str, np.ndarray]


class ResizedPositions(LazyArrays):
    """Our arrays with the image encoder's positions brought to another image size.

    Attributes:
      notes: what was done, for the user.
    """

    def __init__(self, arrays: Arrays, vision: ViTConfig) -> None:
        super().__init__(arrays)
        self._arrays, self._vision = arrays, vision
        self.notes = (resizing(len(arrays[POSITIONS]), vision.num_tokens),)

    def __getitem__(self, path: str) -> np.ndarray:
        if path != POSITIONS:
            return self._arrays[path]
        return interpolate_positions(
            self._arrays[path],
            self._vision.num_tokens,
            align_corners=self._vision.pre_norm,
        )

    def origin(self, path: str) -> Any:
        """As the arrays say; what was resized has another digest than there."""
        found = getattr(self._arrays, "origin", lambda path: "memory")(path)
        if path == POSITIONS and isinstance(found, Mapping):
            return found["source"]
        return found


def at_size(arrays: Arrays, vision: ViTConfig | FeaturesConfig) -> Arrays:
    """Our arrays for an image encoder of this size; the same ones if they are so."""
    if not isinstance(vision, ViTConfig) or POSITIONS not in arrays:
        return arrays
    if len(arrays[POSITIONS]) == vision.num_tokens:
        return arrays
    return ResizedPositions(arrays, vision)


def resizing(old: int, new: int) -> str:
    """What is said of it to the user; both are numbers of tokens."""
    before, after = _side(old), _side(new)
    return (
        f"position embeddings resized from {before} x {before} to {after} x {after} "
        "patches"
    )


def notes_of(arrays: Arrays) -> tuple[str, ...]:
    """What was done to arrays on the way, for the user."""
    return getattr(arrays, "notes", ())


def interpolate_positions(
    positions: Float[np.ndarray, "old D"], num_tokens: int, *, align_corners: bool
) -> Float[np.ndarray, "new D"]:
    """Resizes the square grid behind the class token's position.

    Args:
      positions: the class token's, then a square grid's, row by row.
      num_tokens: wanted, class token included (`ViTConfig.num_tokens`).
      align_corners: False for EVA, True for CLIP.

    Returns:
      Positions in the dtype given; the same array if it has that size already.

    Raises:
      ValueError: either grid is not square.
    """
    if len(positions) == num_tokens:
        return positions
    old, new = _side(len(positions)), _side(num_tokens)
    grid = positions[1:].reshape(old, old, -1).astype(np.float64)
    weights = cubic_weights(old, new, align_corners)
    resized = np.einsum("yi,xj,ijd->yxd", weights, weights, grid, optimize=True)
    resized = resized.reshape(new * new, -1).astype(positions.dtype)
    return np.concatenate([positions[:1], resized])


def cubic_weights(
    old: int, new: int, align_corners: bool
) -> Float[np.ndarray, "new old"]:
    """How each of `new` samples mixes `old` ones (Keys 1981, four taps)."""
    samples = np.arange(new, dtype=np.float64)
    if align_corners:
        places = samples * (old - 1) / max(new - 1, 1)
    else:
        places = (samples + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for row, place in enumerate(places):
        first = math.floor(place) - 1
        for tap in range(first, first + 4):
            weights[row, min(max(tap, 0), old - 1)] += _cubic(abs(place - tap))
    return weights


def _cubic(distance: float) -> float:
    if distance <= 1:
        return ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    if distance < 2:
        return CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return 0.0


def _side(num_tokens: int) -> int:
    side = math.isqrt(num_tokens - 1)
    if side * side != num_tokens - 1:
        raise ValueError(f"{num_tokens - 1} patches do not make a square grid")
    return side
