"""Decoding of any image file to RGB, and the original's image transforms.

Pixels stay uint8 until they are on the device. Evaluation decodes and resamples as the
original, with Pillow; training images take OpenCV's shorter way where it leads to the
same pixels (decoding) or nearly the same (crops). As in the original, orientation tags
are ignored and transparency is dropped.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array
from PIL import Image, UnidentifiedImageError

from blip2_jax.data.sources.base import BrokenSample

cv2.setNumThreads(0)  # images are small and loaded by many workers at once

MAX_DECODED_PIXELS = 100_000_000
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_FAR = 3  # shrinking by more is done in two steps
_END_OF_JPEG = b"\xff\xd9"
_JPEG_SCALES = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


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
      pillow: decode and resample training images with Pillow alone and at full size,
        bit for bit as the original does; what OpenCV resamples differs from that by
        about half a grey level on the average.
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
        if self.pillow or not (self.augment and self.reduced_decode):
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
      at_least: JPEGs may be decoded by OpenCV, at a reduced scale with sides no
        smaller. 0: Pillow's pixels of the full size.

    Raises:
      BrokenSample: not an image, truncated, too large, or otherwise undecodable.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            scale = _reduce(image, at_least) if image.format == "JPEG" else 0
            if image.width * image.height > MAX_DECODED_PIXELS:
                raise BrokenSample("huge image", key, f"{image.width}x{image.height}")
            pixels = _decode_jpeg(data, image, scale) if scale else None
            return np.asarray(to_rgb(image)) if pixels is None else pixels
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


def _reduce(image: Image.Image, at_least: int) -> int:
    """Set the scale, one in so many, that keeps `at_least` pixels; 0: unset."""
    if not at_least:
        return 0
    possible = [n for n in _JPEG_SCALES if n * at_least <= min(image.size)]
    image.draft(image.mode, (at_least, at_least))
    return max(possible, default=1)


def _decode_jpeg(
    data: bytes, image: Image.Image, scale: int
) -> UInt8[Array, "height width 3"] | None:
    """What Pillow would decode of a JPEG in RGB, in two thirds of the time.

    Both decode with libjpeg, but OpenCV fills up what a truncated file lacks. None:
    leave it to Pillow, which knows colours, and what to say of broken files.
    """
    if image.mode != "RGB" or not data.endswith(_END_OF_JPEG):
        return None
    flags = _JPEG_SCALES[scale] | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None or pixels.shape[:2] != (image.height, image.width):
        return None
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), np.uint8)


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
) -> UInt8[Array, "R R 3"]:
    """Resize to a square, bicubic, the aspect ratio given up as in the original."""
    if pixels.shape[:2] == (size, size):  # which resizing would copy
        return pixels
    return _resize(Image.fromarray(pixels), size)


def training_image(
    pixels: UInt8[Array, "height width 3"],
    config: ImageConfig,
    rng: np.random.Generator,
) -> UInt8[Array, "R R 3"]:
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
        result = fast_bicubic(crop, config.size)
    return np.asarray(cv2.flip(result, 1), np.uint8) if flipped else result


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


def fast_bicubic(
    pixels: UInt8[Array, "height width 3"], size: int
) -> UInt8[Array, "R R 3"]:
    """Near to Pillow's bicubic, in a fifth to a third of the time.

    OpenCV's bicubic does not smooth what it shrinks; that is done before. What shrinks
    by more than `_FAR` is brought to twice `size` by means of areas first.
    """
    if max(pixels.shape[:2]) > _FAR * size:
        width, height = (
            2 * size if side > _FAR * size else side for side in pixels.shape[1::-1]
        )
        near = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        pixels = np.asarray(near)
    down, across = (_smoothing(round(side / size, 2)) for side in pixels.shape[:2])
    if max(len(down), len(across)) > 1:
        pixels = np.asarray(cv2.sepFilter2D(pixels, -1, across, down))
    result = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray(result, np.uint8)


@functools.cache
def _smoothing(ratio: float) -> Float[Array, " taps"]:
    """Weights of neighbouring pixels, for a side that shrinks by `ratio`.

    With them OpenCV's bicubic is nearest to Pillow's, by least squares. Both are
    Keys's, with a = -0.75 and -0.5, but Pillow's is as much wider as a side shrinks.
    """
    if ratio <= 1:
        return np.ones(1, np.float32)
    x = np.arange(-2 * _FAR - 2, 2 * _FAR + 2, 1 / 64)
    wanted, own = _keys(x / ratio, -0.5) / ratio, _keys(x, -0.75)
    pairs = [
        _keys(x - n, -0.75) + _keys(x + n, -0.75)
        for n in range(1, math.ceil(2 * ratio))
    ]
    # Their weights' sum is 1, in 256ths too, as OpenCV counts: brightness is kept.
    fitted = np.linalg.lstsq(np.stack(pairs, 1) - 2 * own[:, None], wanted - own)[0]
    sides = np.rint(256 * fitted) / 256
    return np.array([*sides[::-1], 1 - 2 * sides.sum(), *sides], np.float32)


def _keys(x: Float[Array, " samples"], a: float) -> Float[Array, " samples"]:
    """The kernel of cubic convolution (R. Keys, 1981)."""
    x = np.abs(x)
    inner = ((a + 2) * x - (a + 3)) * x**2 + 1
    outer = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _resize(image: Image.Image, size: int) -> UInt8[Array, "R R 3"]:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
