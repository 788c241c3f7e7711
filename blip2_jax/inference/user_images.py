"""Conversion of one image, in any form that users hold it, to RGB pixels."""

from __future__ import annotations

import os
import stat
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from numpy import ndarray as Array
from PIL import Image

from blip2_jax.data.images import decode_image, rgb_pixels
from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.inference.example_images import EXAMPLE_PREFIX, example_pixels
from blip2_jax.inference.image_urls import is_url, read_url, shorten_url
from blip2_jax.parallel.paths import as_path

# Pillow's modes of uint8 arrays, by number of channels.
_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_FORMS = (
    "an image is a path, a URL, the bytes of a file, an open binary file, a PIL image "
    "or a uint8 array [height, width, 3]"
)


def as_pixels(image: Any) -> UInt8[Array, "height width 3"]:
    """Convert one image to uint8 RGB.

    Transparency is dropped and orientation tags are ignored, as in training. The
    channels of an array are its last axis: one (grey), three (RGB) or four (RGBA);
    [height, width] is grey. A torch tensor may have them first, as torchvision does, if
    its last axis has another length. Floats are refused, because their range is
    unknown.

    Args:
      image: a path, an http(s) or data URL, "shapes:N" (see `example_image`), the bytes
        of an image file, an open binary file, a PIL image, or an array of uint8 (NumPy,
        JAX or torch).

    Raises:
      FileNotFoundError: the file does not exist.
      TypeError: `image` has another type.
      ValueError: the URL cannot be read, the file is not an image, the image has no
        pixels or too many, or the array has another shape or dtype.
    """
    if isinstance(image, Image.Image):
        pixels = _pil_pixels(image)
    elif isinstance(image, str) and image.startswith(EXAMPLE_PREFIX):
        pixels = example_pixels(image)
    elif isinstance(image, str | os.PathLike | bytes | bytearray | memoryview):
        pixels = _decode(*_read(image))
    elif hasattr(image, "read"):
        pixels = _decode(*_read_file_object(image))
    elif hasattr(image, "__array__"):
        pixels = _array_pixels(image)
    else:
        raise TypeError(f"{_FORMS}, not {type(image).__name__}")
    if pixels.size == 0:
        height, width = pixels.shape[:2]
        raise ValueError(f"an image of {height} x {width} has no pixels")
    return pixels


def as_numpy(array: Any) -> Shaped[Array, "..."]:
    """Convert an array of NumPy, JAX or torch, on any device."""
    if hasattr(array, "detach"):  # torch: off the graph, and off an accelerator
        array = array.detach().cpu()
    return np.asarray(array)


def _read(
    image: str | os.PathLike[str] | bytes | bytearray | memoryview,
) -> tuple[bytes, str]:
    """Return the bytes of an image file, and its name for errors."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image), f"{len(image)} bytes"
    if isinstance(image, str) and is_url(image):
        return read_url(image), shorten_url(image)
    path = as_path(image)
    if not path.exists():
        raise FileNotFoundError(f"no image file {str(path)!r}")
    if not path.is_file():
        kind = "folder" if stat.S_ISDIR(path.stat().st_mode) else "device or pipe"
        raise ValueError(f"{str(path)!r} is a {kind}, not an image file")
    return path.read_bytes(), str(path)


def _read_file_object(file: Any) -> tuple[bytes, str]:
    """Return what is left to read of an open file, and its name for errors."""
    data = file.read()
    name = str(getattr(file, "name", type(file).__name__))
    if not isinstance(data, bytes | bytearray):
        raise TypeError(f"{name} is open in text mode: open image files with mode 'rb'")
    return bytes(data), name


def _decode(data: bytes, name: str) -> UInt8[Array, "height width 3"]:
    try:
        return decode_image(data, name)
    except BrokenSample as error:
        raise ValueError(str(error)) from None


def _pil_pixels(image: Image.Image) -> UInt8[Array, "height width 3"]:
    """Convert a PIL image, which may be an open file that is not yet decoded."""
    name = str(getattr(image, "filename", "")) or f"a PIL image of mode {image.mode}"
    try:
        return rgb_pixels(image, name)
    except BrokenSample as error:
        raise ValueError(str(error)) from None


def _array_pixels(image: Any) -> UInt8[Array, "height width 3"]:
    """Convert an array; see `as_pixels` for the order of its axes."""
    array = as_numpy(image)
    if array.ndim == 2:
        array = array[..., None]
    is_torch = hasattr(image, "detach")
    if is_torch and array.ndim == 3 and array.shape[-1] not in _CHANNELS:
        array = np.moveaxis(array, 0, -1)
    channels = array.shape[-1] if array.ndim == 3 else 0
    if array.dtype != np.uint8 or channels not in _CHANNELS:
        raise ValueError(
            "an image array is [height, width, 3] of uint8, not "
            f"{list(np.shape(image))} of {array.dtype}{_advice(array, channels)}"
        )
    return array if channels == 3 else _expand_channels(array)


def _expand_channels(
    array: UInt8[Array, "height width channels"],
) -> UInt8[Array, "height width 3"]:
    """Repeat a grey channel, or drop the alpha channel."""
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3]


def _advice(array: Shaped[Array, "..."], channels: int) -> str:
    """Say how to convert an array of another dtype or order of axes."""
    if np.issubdtype(array.dtype, np.floating):
        return (
            ": convert floats first, values in 0 ... 1 with "
            "(255 * x).round().astype('uint8')"
        )
    if array.ndim == 3 and channels not in _CHANNELS and array.shape[0] in _CHANNELS:
        return ": move the channels from the first axis to the last"
    return ""
