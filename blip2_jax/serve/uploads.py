"""Pictures that users upload: checked before they are decoded."""

from __future__ import annotations

import dataclasses
import os

from jaxtyping import UInt8
from numpy import ndarray as Array
from PIL import Image

from blip2_jax.data.images import decode_image
from blip2_jax.data.sources.base import BrokenSample

# Pillow reads many more, some of them by other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


@dataclasses.dataclass(frozen=True)
class UploadLimits:
    """What an uploaded picture may be.

    Attributes:
      bytes: largest file.
      pixels: largest height times width.
    """

    bytes: int = 10_000_000
    pixels: int = 25_000_000


def read_upload(path: str, limits: UploadLimits) -> UInt8[Array, "height width 3"]:
    """Decode an uploaded picture.

    Args:
      path: of the file.
      limits: what is refused before anything is decoded.

    Raises:
      ValueError: it is too large, or no picture; the message is for the user.
    """
    if os.path.getsize(path) > limits.bytes:
        raise ValueError(f"The file is larger than {limits.bytes / 1e6:g} MB.")
    try:
        with Image.open(path, formats=FORMATS) as image:
            pixels = image.width * image.height
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ValueError("The file is not a picture that can be read.") from None
    if pixels > limits.pixels:
        raise ValueError(
            f"The picture has {pixels / 1e6:.3g} million pixels; at most "
            f"{limits.pixels / 1e6:g} million are read."
        )
    with open(path, "rb") as file:
        data = file.read()
    try:
        return decode_image(data, "the picture")
    except BrokenSample as error:
        raise ValueError(f"The picture cannot be read: {error.cause}.") from None
