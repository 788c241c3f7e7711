"""Images of an HTML page: <img> elements with their data, which a click enlarges.

Each image is a button inside its own popover (HTML's `popover` attribute), so that a
click, Enter or Space shows it over the page and a click or Escape closes it, without
any script.
"""

from __future__ import annotations

import base64
import io

from jaxtyping import UInt8
from numpy import ndarray as Array
from PIL import Image

from blip2_jax.reports.markup import Html, element

MIN_STORED_WIDTH = 640  # of photographs, for their enlargement

# How `_zoomable` joins popover and button. Texts of a page have "&lt;" in place of "<".
_JOINT = "id=zoom{n}><button popovertarget=zoom{n} "


def png_tag(pixels: UInt8[Array, "height width 3"], width: int, alt: str) -> Html:
    """Render an image with a PNG inside.

    Args:
      pixels: the image.
      width: displayed width in pixels.
      alt: what the image shows, for readers who do not see it.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return _zoomable("png", buffer.getvalue(), pixels.shape[:2], width, alt)


def jpeg_tag(
    pixels: UInt8[Array, "height width 3"], alt: str, width: int = 224
) -> Html:
    """Render an image with a JPEG inside, reduced to twice the displayed width.

    Args:
      pixels: the image.
      alt: as in `png_tag`.
      width: displayed width in pixels.
    """
    photo = Image.fromarray(pixels)
    stored = max(2 * width, MIN_STORED_WIDTH)
    photo.thumbnail((stored, stored))
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=85)
    return _zoomable("jpeg", buffer.getvalue(), pixels.shape[:2], width, alt)


def _zoomable(
    kind: str, data: bytes, size: tuple[int, ...], width: int, alt: str
) -> Html:
    """Render an image of a size (height, width) inside its button and popover.

    The outer element keeps the place while the image is shown over the page.
    """
    height, original_width = size
    sharp = {"class_": "pixels"} if original_width < width else {}  # when enlarged
    encoded = base64.b64encode(data).decode()
    source = f"data:image/{kind};base64,{encoded}"
    image = element("img", **sharp, alt=alt, src=source)
    button = element(
        "button", image, popovertarget="zoom", type="button", title="enlarge"
    )
    popover = element("span", button, popover="auto", id="zoom")
    style = f"width:{width}px;aspect-ratio:{original_width}/{height}"
    return element("span", popover, class_="zoom", style=style)


def number_images(page: str) -> str:
    """Give each image of a page an id of its own, to which its button refers."""
    first, *others = page.split(_JOINT.format(n=""))
    numbered = (_JOINT.format(n=n) + part for n, part in enumerate(others))
    return "".join([first, *numbered])
