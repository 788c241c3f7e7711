"""Small copies of pictures, to be shown."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array
from PIL import Image

MAX_SIDE = 512  # pixels


def thumbnail(
    pixels: UInt8[Array, "height width 3"],
) -> UInt8[Array, "rows columns 3"]:
    """Shrink a picture so that its longer side has at most `MAX_SIDE` pixels."""
    scale = MAX_SIDE / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
