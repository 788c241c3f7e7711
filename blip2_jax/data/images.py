"""Decoding of any image file to RGB, and the original's image transforms.

Pixels stay uint8 until they are on the device. Evaluation resamples as the original,
with Pillow; training crops are resampled by OpenCV, which takes an eighth of the time.
As in the original, orientation tags are ignored and transparency is dropped.
"""

from __future__ import annotations

import dataclasses
import io
import math

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array
from PIL import Image, UnidentifiedImageError

from blip2_jax.data.sources.base import BrokenSample

cv2.setNumThreads(0)  # images are small and loaded by many workers at once

MAX_DECODED_PIXELS = 100_000_000
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """How images are brought to the model's size.

    Attributes:
      size: sides of the result.
      augment: random resized crop and flip in training; False: the evaluation
        transform in training too.
      min_scale: smallest share of the area that a crop keeps.
      flip: probability of a mirror image.
      monochrome: probability that a training image loses its colours for shades of
        one tint, half of them inverted, whatever `augment` says: shapes are then
        learned for themselves, not colour by colour. Half of these images lose all
        colour, the others some.
      pillow: resample training crops with Pillow, bit for bit as the original does;
        OpenCV's differs by about one grey level on the average.
      reduced_decode: let JPEGs be decoded at half, quarter, ... size while every
        crop still has `size` pixels a side.
    """

    size: int = 224
    augment: bool = True
    min_scale: float = 0.5
    flip: float = 0.5
    monochrome: float = 0.0
    pillow: bool = False
    reduced_decode: bool = True

    @property
    def at_least(self) -> int:
        """Sides that leave the smallest crop of a training image `size` pixels."""
        if not (self.augment and self.reduced_decode):
            return 0
        return math.ceil(self.size / math.sqrt(self.min_scale * _RATIO[0]))


_RATIO = (3 / 4, 4 / 3)
_TINT = 0.5  # of a tint's weakest channel, beside a strongest one of 1


def decode_image(
    data: bytes, key: str, at_least: int = 0
) -> UInt8[Array, "height width 3"]:
    """RGB pixels of an encoded image: the first frame, any mode.

    Args:
      data: the file's bytes.
      key: names the image in errors.
      at_least: JPEGs may be decoded at a reduced scale with sides no smaller.

    Raises:
      BrokenSample: not an image, truncated, too large, or otherwise undecodable.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if at_least and image.format == "JPEG":
                image.draft(image.mode, (at_least, at_least))
            if image.width * image.height > MAX_DECODED_PIXELS:
                raise BrokenSample("huge image", key, f"{image.width}x{image.height}")
            return np.asarray(to_rgb(image))
    except BrokenSample:
        raise
    except Image.DecompressionBombError as error:
        raise BrokenSample("huge image", key, str(error)) from None
    except UnidentifiedImageError:
        cause = "not an image" if data else "empty image file"
        raise BrokenSample(cause, key) from None
    except Exception as error:  # decoders of broken files raise almost anything
        truncated = "truncated" in str(error) or "incomplete" in str(error)
        cause = "truncated image" if truncated else "undecodable image"
        raise BrokenSample(cause, key, str(error)) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame in RGB; 16-bit values are scaled, not clipped."""
    if image.mode in _SIXTEEN_BIT:  # Pillow would clip at 255
        values = np.asarray(image).astype(np.int64)
        values = values >> 8 if values.max(initial=0) > 255 else values
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8), "L")
    elif image.mode == "P":
        image = image.convert("RGBA")  # palettes with a transparent entry
    return image.convert("RGB")


def evaluation_image(
    pixels: UInt8[Array, "height width 3"], size: int
) -> UInt8[Array, "S S 3"]:
    """Resize to a square, bicubic, the aspect ratio given up as in the original."""
    return _resize(Image.fromarray(pixels), size)


def training_image(
    pixels: UInt8[Array, "height width 3"],
    config: ImageConfig,
    rng: np.random.Generator,
) -> UInt8[Array, "S S 3"]:
    """Random resized crop (area min_scale .. 1, aspect 3/4 .. 4/3), flip, tint."""
    if config.monochrome and rng.random() < config.monochrome:
        pixels = _monochrome(pixels, rng)
    if not config.augment:
        return evaluation_image(pixels, config.size)
    height, width = pixels.shape[:2]
    top, left, crop_height, crop_width = crop_box(height, width, config.min_scale, rng)
    flipped = rng.random() < config.flip
    crop = pixels[top : top + crop_height, left : left + crop_width]
    if config.pillow:
        result = _resize(Image.fromarray(crop), config.size)
    else:
        result = _resize_fast(crop, config.size)
    return np.ascontiguousarray(result[:, ::-1]) if flipped else result


def crop_box(
    height: int, width: int, min_scale: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop, as torchvision draws it.

    The area is uniform, the aspect ratio log-uniform; after ten boxes that do not
    fit, the largest central one within the aspect limits.
    """
    for _ in range(10):
        area = height * width * rng.uniform(min_scale, 1.0)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        box_width = round(math.sqrt(area * ratio))
        box_height = round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return top, left, box_height, box_width
    box_height = min(height, max(round(width / _RATIO[0]), 1))
    box_width = min(width, max(round(height * _RATIO[1]), 1))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _monochrome(
    pixels: UInt8[Array, "height width 3"], rng: np.random.Generator
) -> UInt8[Array, "height width 3"]:
    """Luma, or its inverse, in a tint that no grey picture has; or on the way."""
    luma = np.asarray(Image.fromarray(pixels).convert("L"))
    luma = 255 - luma if rng.integers(2) else luma
    tint = rng.permutation([1.0, _TINT, rng.uniform(_TINT, 1.0)])
    share = rng.choice([1.0, rng.random()])
    return np.rint(share * luma[..., None] * tint + (1 - share) * pixels).astype(
        np.uint8
    )


def _resize_fast(
    pixels: UInt8[Array, "height width 3"], size: int
) -> UInt8[Array, "S S 3"]:
    """The mean of what falls on a pixel where both sides shrink, else bicubic.

    OpenCV's bicubic does not smooth; on photos shrunk to 0.9 ... 0.25 of their size it
    is 1.6 to 7.6 grey levels from Pillow's, the mean 0.9 to 1.6.
    """
    shrinks = min(pixels.shape[:2]) >= size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, (size, size), interpolation=how), np.uint8)


def _resize(image: Image.Image, size: int) -> UInt8[Array, "S S 3"]:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
