"""Images as a model takes them, read and decoded ahead of it by threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.images import decode_image, evaluation_image
from blip2_jax.data.prefetch import map_ahead
from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.reading import broken_on_error
from blip2_jax.inference.image_sets import ImageSet

_AHEAD = 3  # batches that are decoded before the model takes them


@dataclasses.dataclass
class LoadedImage:
    """An image of a set.

    Attributes:
      number: its number in the set.
      name: its name.
      data: the content of its file.
      pixels: as the model takes them.
      broken: what is wrong with it; None: nothing.
    """

    number: int
    name: str
    data: bytes = b""
    pixels: UInt8[Array, "R R 3"] | None = None
    broken: BrokenSample | None = None


def load_image(images: ImageSet, number: int, name: str, size: int) -> LoadedImage:
    """Read, decode and resize an image to `size` x `size` pixels, as in evaluation."""
    image = LoadedImage(number, name)
    try:
        with broken_on_error("unreadable image", name):
            image.data = images.read(number, name)
            image.pixels = model_pixels(image.data, name, size)
    except BrokenSample as error:
        image.broken = error
    return image


def model_pixels(data: bytes, name: str, size: int) -> UInt8[Array, "R R 3"]:
    """Decode and resize an image file to `size` x `size` pixels, as in evaluation.

    Raises:
      BrokenSample: it is no image, or has no pixels.
    """
    pixels = decode_image(data, name)
    if not pixels.size:
        raise BrokenSample("image without pixels", name)
    return evaluation_image(pixels, size)


def load_images(
    images: ImageSet, start: int, stop: int, size: int, batch_size: int, threads: int
) -> Iterator[LoadedImage]:
    """Yield images `start` to `stop - 1`, loaded ahead by threads, in order."""
    return map_ahead(
        lambda numbered: load_image(images, *numbered, size),
        enumerate(images.names(start, stop), start),
        ahead=_AHEAD * batch_size,
        threads=threads,
    )


def batches(
    images: Iterator[LoadedImage], batch_size: int
) -> Iterator[list[LoadedImage]]:
    """Group images so that each batch but the last has `batch_size` readable ones.

    Broken images stay in their places among the others.
    """
    batch: list[LoadedImage] = []
    readable = 0
    for image in images:
        batch.append(image)
        readable += image.broken is None
        if readable == batch_size:
            yield batch
            batch, readable = [], 0
    if batch:
        yield batch


def stack_pixels(batch: Sequence[LoadedImage]) -> UInt8[Array, "B R R 3"]:
    """Return the pixels of the readable images of a batch."""
    return np.stack([image.pixels for image in batch if image.pixels is not None])
