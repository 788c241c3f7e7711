"""Position embeddings for another image size, interpolated as in the original.

The interpolation is bicubic with a = -0.75 and clamped borders, as torch's
`interpolate`; `jax.image.resize` has a = -0.5. The loaders of EVA-CLIP, SigLIP and
DINOv2 align the centres of the pixels, CLIP's aligns the corners. DINOv2 with registers
has the antialiasing filter of torch, with a = -0.5 and without the taps outside.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from blip2_jax.convert.files.checkpoint_files import LazyArrays, SourceError
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import FeaturesConfig, ViTConfig

CUBIC, CUBIC_ANTIALIAS = -0.75, -0.5
POSITIONS = "visual_encoder/position_embedding"  # path of the parameter
Arrays = Mapping[str, np.ndarray]


def config_at_size(config: Blip2Config, image_size: int) -> Blip2Config:
    """Return the configuration of a model for another image size.

    Raises:
      SourceError: the model has no image encoder, or the size is not a whole number of
        patches.
    """
    if not isinstance(config.vision, ViTConfig):
        raise SourceError("this model reads features: it has no image size")
    vision = vision_at_size(config.vision, image_size)
    return dataclasses.replace(config, vision=vision)


def vision_at_size(vision: ViTConfig, image_size: int) -> ViTConfig:
    """Return the sizes of an image encoder for another image size.

    Raises:
      SourceError: the size is not a whole number of patches.
    """
    if image_size % vision.patch_size and image_size != vision.image_size:
        raise SourceError(
            f"the image size must be a multiple of the patch size {vision.patch_size}, "
            f"not {image_size}"
        )
    return dataclasses.replace(vision, image_size=image_size)


def arrays_at_size(arrays: Arrays, vision: ViTConfig | FeaturesConfig) -> Arrays:
    """Return parameters by path whose position embeddings fit an image encoder.

    The result is `arrays` itself if they fit already.
    """
    if not isinstance(vision, ViTConfig) or POSITIONS not in arrays:
        return arrays
    if len(arrays[POSITIONS]) == vision.num_positions:
        return arrays
    return InterpolatedArrays(arrays, vision)


class InterpolatedArrays(LazyArrays):
    """Parameters by path with interpolated position embeddings.

    Attributes:
      notes: the interpolation, as a line for the user.
    """

    def __init__(self, arrays: Arrays, vision: ViTConfig) -> None:
        super().__init__(arrays)
        self._arrays, self._vision = arrays, vision
        self.notes = (resize_note(len(arrays[POSITIONS]), vision),)

    def __getitem__(self, path: str) -> np.ndarray:
        if path != POSITIONS:
            return self._arrays[path]
        return interpolate_positions(self._arrays[path], self._vision)

    def origin(self, path: str) -> Any:
        """Return the origin of a parameter.

        Of the position embeddings it is only the file: the digest in a manifest is that
        of the values before the interpolation.
        """
        origin = getattr(self._arrays, "origin", lambda path: "memory")(path)
        if path == POSITIONS and isinstance(origin, Mapping):
            return origin["source"]
        return origin


def resize_note(num_positions: int, vision: ViTConfig) -> str:
    """Describe to the user an interpolation to the positions of `vision`."""
    before, after = _side(num_positions, vision), _side(vision.num_positions, vision)
    return (
        f"position embeddings resized from {before} x {before} to {after} x {after} "
        "patches"
    )


def notes_of(arrays: Arrays) -> tuple[str, ...]:
    """Return the lines for the user on how arrays were changed when read."""
    return getattr(arrays, "notes", ())


def interpolate_positions(
    positions: Float[np.ndarray, "old D"], vision: ViTConfig
) -> Float[np.ndarray, "new D"]:
    """Interpolate position embeddings to the square grid of an image encoder.

    Args:
      positions: the class token's, if there is one, then those of a square grid, row by
        row.
      vision: sizes of the encoder.

    Returns:
      Positions in the dtype given; the same array if it has that size already.

    Raises:
      ValueError: the grid is not square.
    """
    if len(positions) == vision.num_positions:
        return positions
    old, new = _side(len(positions), vision), _side(vision.num_positions, vision)
    first = int(vision.class_token)
    grid = positions[first:].reshape(old, old, -1).astype(np.float64)
    weights = WEIGHTS[vision.interpolation](old, new)
    resized = np.einsum("yi,xj,ijd->yxd", weights, weights, grid, optimize=True)
    resized = resized.reshape(new * new, -1).astype(positions.dtype)
    return np.concatenate([positions[:first], resized])


def cubic_weights(
    old: int, new: int, align_corners: bool
) -> Float[np.ndarray, "new old"]:
    """Return the interpolation matrix along one axis (Keys 1981, four taps)."""
    samples = np.arange(new, dtype=np.float64)
    if align_corners:
        coordinates = samples * (old - 1) / max(new - 1, 1)
    else:
        coordinates = (samples + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for row, coordinate in enumerate(coordinates):
        first = math.floor(coordinate) - 1
        for tap in range(first, first + 4):
            weights[row, min(max(tap, 0), old - 1)] += _cubic(abs(coordinate - tap))
    return weights


def antialiased_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Return the matrix along one axis with a filter as wide as the larger pixel."""
    scale, pixels = old / new, np.arange(old) + 0.5
    weights = np.zeros((new, old))
    for row in range(new):
        distances = np.abs(pixels - (row + 0.5) * scale) / max(scale, 1.0)
        weights[row] = [_cubic(distance, CUBIC_ANTIALIAS) for distance in distances]
    return weights / weights.sum(axis=1, keepdims=True)


# By `ViTConfig.interpolation`.
WEIGHTS: dict[str, Callable[[int, int], np.ndarray]] = {
    "centres": functools.partial(cubic_weights, align_corners=False),
    "corners": functools.partial(cubic_weights, align_corners=True),
    "antialias": antialiased_weights,
}


def _cubic(distance: float, a: float = CUBIC) -> float:
    if distance <= 1:
        return ((a + 2) * distance - (a + 3)) * distance**2 + 1
    if distance < 2:
        return a * (((distance - 5) * distance + 8) * distance - 4)
    return 0.0


def _side(num_positions: int, vision: ViTConfig) -> int:
    """Return the side of the grid of patches, in patches."""
    patches = num_positions - vision.class_token
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{patches} patches do not make a square grid")
    return side
