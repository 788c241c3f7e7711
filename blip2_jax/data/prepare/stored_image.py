"""The image of a record as it is stored: as the source keeps it, or resized."""

from __future__ import annotations

import dataclasses
import io

from jaxtyping import Shaped
from numpy import ndarray as Array
from PIL import Image

from blip2_jax.data.images import decode_image
from blip2_jax.data.sources.base import Source
from blip2_jax.data.sources.reading import EncodedImage, read_encoded


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image as it is stored.

    Attributes:
      file: the file to store.
      original: the file before resizing.
      size: width and height before resizing.
    """

    file: EncodedImage
    original: EncodedImage
    size: tuple[int, int]


def stored_image(
    source: Source, index: int, key: str, resize: int = 0, quality: int = 95
) -> StoredImage:
    """Read a record's image and resize it if it is larger than asked.

    The image is decoded in any case, so that a broken one is noticed.

    Args:
      source: a source of pixels.
      index: index of the record.
      key: key of the record, for messages.
      resize: length of the shorter side of larger images, which become JPEGs, in
        pixels; 0: keep all. Smaller images are not enlarged.
      quality: quality of the JPEGs that are written, 1 to 100.

    Raises:
      BrokenSample: the image is missing or cannot be decoded.
    """
    file = read_encoded(source, index, key)
    # A JPEG may be decoded at a reduced scale of at least twice the final size.
    pixels = decode_image(file.data, key, 2 * resize)
    with Image.open(io.BytesIO(file.data)) as image:
        size = image.size
    if not resize or min(size) <= resize:
        return StoredImage(file, file, size)
    resized = EncodedImage(_jpeg(pixels, size, resize, quality), "jpg")
    return StoredImage(resized, file, size)


def _jpeg(
    pixels: Shaped[Array, "height width 3"],
    size: tuple[int, int],
    resize: int,
    quality: int,
) -> bytes:
    """Resize pixels so that the shorter side has `resize`, and encode them."""
    width, height = (max(1, round(side * resize / min(size))) for side in size)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
