"""Attention maps as colours over a picture."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array
from PIL import Image

MIN_SIDE = 224  # of an overlay, in pixels: small pictures are enlarged

# Colours of low to high attention: dark blue, violet, red, orange, yellow. Their
# lightness grows evenly, so that they read in grey and for the colour-blind.
_COLORS = np.array(
    [(20, 12, 70), (98, 20, 128), (190, 50, 90), (245, 125, 21), (252, 230, 80)],
    np.float32,
)
_MAX_ALPHA = 0.6


def colors(share: Float[Array, "*shape"]) -> Float[Array, "*shape 3"]:
    """Return the RGB colours, from 0 to 255, of shares between 0 and 1."""
    stops = np.linspace(0, 1, len(_COLORS))
    channels = [np.interp(share, stops, channel) for channel in _COLORS.T]
    return np.stack(channels, axis=-1).astype(np.float32)


def scale(maps: Float[Array, "N grid grid"]) -> Float[Array, "N grid grid"]:
    """Scale each map to shares between 0 and 1.

    The median becomes 0, because maps spread a floor of attention over all patches, and
    the maximum becomes 1. A flat map becomes 0 everywhere; values that are not finite
    count as the least.
    """
    known = np.isfinite(maps)
    finite = np.where(known, maps, np.min(maps, initial=0.0, where=known))
    floor = np.median(finite, axis=(1, 2), keepdims=True)
    above = np.maximum(finite - floor, 0.0)
    top = above.max(axis=(1, 2), keepdims=True)
    return (above / np.where(top > 0, top, 1.0)).astype(np.float32)


def overlay(
    pixels: UInt8[Array, "height width 3"], share: Float[Array, "grid grid"]
) -> UInt8[Array, "rows columns 3"]:
    """Draw a map over a picture: grey and darker where it is low, coloured where high.

    Args:
      pixels: the picture, of which the map covers all.
      share: of attention, between 0 and 1 (`scale`).

    Returns:
      The picture with sides of at least `MIN_SIDE`.
    """
    height, width = pixels.shape[:2]
    factor = max(1, -(-MIN_SIDE // min(height, width)))
    size = (width * factor, height * factor)
    picture = np.asarray(
        Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST), np.float32
    )
    heat = np.asarray(
        Image.fromarray(share.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    )
    heat = heat.clip(0, 1)
    grey = picture.mean(axis=-1, keepdims=True)
    high = heat[..., None]
    ground = high * picture + (1 - high) * (0.3 * picture + 0.4 * grey)
    alpha = _MAX_ALPHA * high
    mixed = (1 - alpha) * ground + alpha * colors(heat)
    return mixed.round().clip(0, 255).astype(np.uint8)
