"""Images of an HTML page: <img> elements with their data, and attention overlays."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array
from PIL import Image

from blip2_jax.reports.markup import Html, element


def png_tag(pixels: UInt8[Array, "height width 3"], width: int) -> Html:
    """Make an <img> of a square image with a PNG inside."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    source = f"data:image/png;base64,{data}"
    sharp = {"class_": "pixels"} if pixels.shape[1] < width else {}  # when enlarged
    return element("img", **sharp, alt="", width=width, height=width, src=source)


def jpeg_tag(
    pixels: UInt8[Array, "height width 3"], name: str, width: int = 224
) -> Html:
    """Make an <img> with a JPEG inside, of at most twice the displayed width."""
    photo = Image.fromarray(pixels)
    photo.thumbnail((2 * width, 2 * width))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    source = f"data:image/jpeg;base64,{data}"
    return element("img", alt=name, width=width, src=source)


def overlay(
    pixels: UInt8[Array, "side side 3"], weights: Float[Array, "grid grid"]
) -> UInt8[Array, "side side 3"]:
    """Darken a square image where the weights are low."""
    size = pixels.shape[0]
    share = weights / max(float(weights.max()), 1e-9)
    small = Image.fromarray((255 * share).astype(np.uint8))
    light = np.asarray(small.resize((size, size), Image.Resampling.BILINEAR)) / 255.0
    return (pixels * (0.15 + 0.85 * light[..., None])).astype(np.uint8)
