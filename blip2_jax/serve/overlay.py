"""A map of the patches, laid over its picture in colour."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array
from PIL import Image

from blip2_jax.inference.word_attention import spread_map

MAX_SIDE = 512  # of the result in pixels
_DIMMED = 0.35  # brightness of the picture where the map is 0
_GLOW = np.array([255, 190, 40], np.float32)
_GLOW_SHARE = 0.45  # of the colour where the map is largest


def lay_over(
    pixels: UInt8[Array, "height width 3"], values: Float[Array, "grid grid"]
) -> UInt8[Array, "rows columns 3"]:
    """Dim a picture where a map is small, and tint it where the map is large.

    Args:
      pixels: the picture.
      values: the map, from `word_attention`.

    Returns:
      The picture with its own proportions, its longer side `MAX_SIDE`.
    """
    picture = thumbnail(pixels, grow=True).astype(np.float32)
    height, width = picture.shape[:2]
    heat = spread_map(values, height, width)[..., None]
    picture *= _DIMMED + (1 - _DIMMED) * heat
    picture += _GLOW_SHARE * heat * (_GLOW - picture)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def thumbnail(
    pixels: UInt8[Array, "height width 3"], grow: bool = False
) -> UInt8[Array, "rows columns 3"]:
    """Resize a picture so that its longer side has `MAX_SIDE` pixels.

    Args:
      pixels: the picture.
      grow: also enlarge a smaller one.
    """
    scale = MAX_SIDE / max(pixels.shape[:2])
    if scale >= 1 and not grow:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
