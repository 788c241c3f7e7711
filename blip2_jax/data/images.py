"""Decoding of image files to RGB, and the original's image transforms.

Pixels stay uint8 until they are on the device. Evaluation decodes and resamples with
Pillow, as the original does. Training uses the faster OpenCV if it gives the same
pixels (decoding) or nearly the same (crops). As in the original, orientation tags are
ignored and transparency is dropped.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math

import cv2
import numpy as np
from jaxtyping import Float, Shaped, UInt8
from numpy import ndarray as Array
from PIL import Image, UnidentifiedImageError

from blip2_jax.data.sources.base import BrokenSample

cv2.setNumThreads(0)  # many workers load small images in parallel

MAX_DECODED_PIXELS = 100_000_000
_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # grey, of 16 or 32 bits
# Modes that Pillow converts to RGB only through another one. Palettes may have a
# transparent entry.
_THROUGH = {"P": "RGBA", "RGBa": "RGBA", "La": "LA"}
_MAX_RATIO = 3  # larger reductions take two steps
_END_OF_JPEG = b"\xff\xd9"
_JPEG_SCALES = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """Size and augmentation of images.

    Attributes:
      size: side of the result in pixels.
      augment: random resized crop and flip in training; False: use the evaluation
        transform in training too.
      min_scale: smallest share of the area that a crop keeps.
      flip: probability of a horizontal flip.
      monochrome: probability that a training image is tinted in one colour, regardless
        of `augment`, so that shapes are learned independently of colours. Half of these
        images are inverted; half of them keep a random share of their colours.
      pillow: decode and resample training images with Pillow only and at full size,
        bit for bit as the original does; resampling with OpenCV differs by half a grey
        level on average.
      reduced_decode: decode JPEGs at 1/2, 1/4 or 1/8 of their size as long as every
        crop still has `size` pixels per side.
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
        """Image side at which the smallest training crop still has `size` pixels."""
        if self.pillow or not (self.augment and self.reduced_decode):
            return 0
        return math.ceil(self.size / math.sqrt(self.min_scale * _RATIO[0]))


_RATIO = (3 / 4, 4 / 3)
_TINT = 0.5  # weakest channel of a tint, whose strongest channel is 1


def decode_image(
    data: bytes, key: str, at_least: int = 0
) -> UInt8[Array, "height width 3"]:
    """Decode the first frame of an image file of any mode to RGB.

    Args:
      data: the bytes of the file.
      key: name of the image in errors.
      at_least: allow OpenCV to decode JPEGs at a reduced scale whose sides are no
        smaller. 0: decode at full size with Pillow.

    Raises:
      BrokenSample: not an image, truncated, too large, or otherwise undecodable.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            scale = _reduce(image, at_least) if image.format == "JPEG" else 0
            _check_size(image, key)
            pixels = _decode_jpeg(data, image, scale) if scale else None
            return rgb_pixels(image, key) if pixels is None else pixels
    except BrokenSample:
        raise
    except Image.DecompressionBombError as error:
        raise BrokenSample("huge image", key, str(error)) from None
    except UnidentifiedImageError:
        cause = "not an image" if data else "empty image file"
        raise BrokenSample(cause, key) from None
    except Exception as error:  # decoders of broken files raise almost anything
        raise _undecodable(key, error) from None


def rgb_pixels(image: Image.Image, key: str) -> UInt8[Array, "height width 3"]:
    """Decode the first frame of an opened image of any mode to RGB.

    Args:
      image: the image.
      key: name of the image in errors.

    Raises:
      BrokenSample: the image is too large, truncated, or otherwise undecodable.
    """
    _check_size(image, key)
    try:
        return np.asarray(to_rgb(image))
    except Exception as error:  # decoders of broken files raise almost anything
        raise _undecodable(key, error) from None


def _check_size(image: Image.Image, key: str) -> None:
    if image.width * image.height > MAX_DECODED_PIXELS:
        raise BrokenSample("huge image", key, f"{image.width}x{image.height}")


def _undecodable(key: str, error: Exception) -> BrokenSample:
    truncated = "truncated" in str(error) or "incomplete" in str(error)
    cause = "truncated image" if truncated else "undecodable image"
    return BrokenSample(cause, key, str(error))


def _reduce(image: Image.Image, at_least: int) -> int:
    """Set Pillow's JPEG scale 1/n that keeps `at_least` pixels; return n, 0: unset."""
    if not at_least:
        return 0
    possible = [n for n in _JPEG_SCALES if n * at_least <= min(image.size)]
    image.draft(image.mode, (at_least, at_least))
    return max(possible, default=1)


def _decode_jpeg(
    data: bytes, image: Image.Image, scale: int
) -> UInt8[Array, "height width 3"] | None:
    """Decode an RGB JPEG to Pillow's pixels, in two thirds of its time.

    Both use libjpeg, but OpenCV silently completes truncated files. Other colour modes
    and files without an end marker return None and are left to Pillow.
    """
    if image.mode != "RGB" or not data.endswith(_END_OF_JPEG):
        return None
    flags = _JPEG_SCALES[scale] | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None or pixels.shape[:2] != (image.height, image.width):
        return None
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert the first frame to RGB; wide values are scaled, not clipped.

    Integers of more than 8 bits give their high byte if one of them exceeds 255. Floats
    in 0 ... 1 are multiplied by 255; those in 0 ... 255 are rounded.

    Raises:
      ValueError: grey values are negative, not finite, or exceed 16 bits (integers) or
        255 (floats), so that their range is unknown.
    """
    if image.mode in _WIDE:  # Pillow would clip at 255
        return Image.fromarray(_grey_bytes(np.asarray(image)), "L").convert("RGB")
    if image.mode in _THROUGH:
        image = image.convert(_THROUGH[image.mode])
    return image.convert("RGB")


def _grey_bytes(
    values: Shaped[Array, "height width"],
) -> UInt8[Array, "height width"]:
    """Scale grey values of 16 or 32 bits to 8 bits; see `to_rgb`."""
    is_float = np.issubdtype(values.dtype, np.floating)
    lowest, highest = values.min(initial=0), values.max(initial=0)
    limit = 255 if is_float else 65535
    if not 0 <= lowest <= highest <= limit:  # also if one of them is not a number
        raise ValueError(
            f"grey values from {lowest:g} to {highest:g}: expected 0 to {limit}"
        )
    if is_float:
        values = np.rint(values * 255 if highest <= 1 else values)
    elif highest > 255:
        values = values >> 8
    return values.astype(np.uint8)


def evaluation_image(
    pixels: UInt8[Array, "height width 3"], size: int
) -> UInt8[Array, "R R 3"]:
    """Resize to a square with bicubic interpolation, as the original does."""
    if pixels.shape[:2] == (size, size):  # resizing would copy
        return pixels
    return _resize(Image.fromarray(pixels), size)


def center_image(
    pixels: UInt8[Array, "height width 3"], size: int
) -> UInt8[Array, "R R 3"]:
    """Resize the shorter side with bicubic interpolation and crop the centre (CLIP).

    Of the pixels, 0.1 % differ by one grey level from those of the original, which
    resizes the whole image.
    """
    sides = np.array(pixels.shape[1::-1])  # width, height
    resized = size * sides // sides.min()
    first = np.rint((resized - size) / 2)
    left, top = first * sides / resized
    right, bottom = (first + size) * sides / resized
    # Only the centre is computed: a long narrow image would become very large. The axes
    # follow each other as in Pillow, which is less exact if it gets a box for both.
    image, height = Image.fromarray(pixels), len(pixels)
    bicubic = Image.Resampling.BICUBIC
    image = image.resize((size, height), bicubic, (left, 0, right, height))
    image = image.resize((size, size), bicubic, (0, top, size, bottom))
    return np.asarray(image)


def training_image(
    pixels: UInt8[Array, "height width 3"],
    config: ImageConfig,
    rng: np.random.Generator,
) -> UInt8[Array, "R R 3"]:
    """Apply a random tint, resized crop (aspect ratio 3/4 .. 4/3) and flip."""
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
    """Draw the top, left, height and width of a random crop as torchvision does.

    The area is uniform, the aspect ratio log-uniform. After ten boxes that do not fit,
    the crop is the largest central box within the aspect limits.
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
    """Blend an image with its luma, or the inverse, in a random tint."""
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
    """Resize to a square like Pillow's bicubic, in a fifth to a third of its time.

    OpenCV's bicubic does not smooth before it shrinks, so that this does. Sides that
    shrink by more than `_MAX_RATIO` are first averaged to twice `size`.
    """
    if max(pixels.shape[:2]) > _MAX_RATIO * size:
        width, height = (
            2 * size if side > _MAX_RATIO * size else side
            for side in pixels.shape[1::-1]
        )
        reduced = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        pixels = np.asarray(reduced)
    vertical, horizontal = (
        _smoothing(round(side / size, 2)) for side in pixels.shape[:2]
    )
    if max(len(vertical), len(horizontal)) > 1:
        pixels = np.asarray(cv2.sepFilter2D(pixels, -1, horizontal, vertical))
    result = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.asarray(result, np.uint8)


@functools.cache
def _smoothing(ratio: float) -> Float[Array, " taps"]:
    """Return the smoothing filter for a side that shrinks by `ratio`.

    A least-squares fit, so that the filter followed by OpenCV's bicubic kernel is
    closest to Pillow's. Both are Keys's kernel, with a = -0.75 and a = -0.5, but Pillow
    widens its kernel by `ratio`.
    """
    if ratio <= 1:
        return np.ones(1, np.float32)
    x = np.arange(-2 * _MAX_RATIO - 2, 2 * _MAX_RATIO + 2, 1 / 64)
    target, kernel = _keys(x / ratio, -0.5) / ratio, _keys(x, -0.75)
    pairs = [
        _keys(x - n, -0.75) + _keys(x + n, -0.75)
        for n in range(1, math.ceil(2 * ratio))
    ]
    # Rounded to 256ths, OpenCV's precision, with a sum of 1, which keeps brightness.
    basis = np.stack(pairs, 1) - 2 * kernel[:, None]
    sides = np.rint(256 * np.linalg.lstsq(basis, target - kernel)[0]) / 256
    return np.array([*sides[::-1], 1 - 2 * sides.sum(), *sides], np.float32)


def _keys(x: Float[Array, " samples"], a: float) -> Float[Array, " samples"]:
    """Evaluate the kernel of cubic convolution (R. Keys, 1981)."""
    x = np.abs(x)
    inner = ((a + 2) * x - (a + 3)) * x**2 + 1
    outer = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _resize(image: Image.Image, size: int) -> UInt8[Array, "R R 3"]:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
