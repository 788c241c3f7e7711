"""What users hand over (images, features, texts) as arrays of known shapes."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from numpy import ndarray as Array
from PIL import Image

from blip2_jax.data.images import decode_image, evaluation_image, to_rgb
from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.models.presets import FeaturesConfig, ViTConfig

T = TypeVar("T")


def as_pixels(image: Any) -> UInt8[Array, "height width 3"]:
    """RGB bytes of one image.

    Args:
      image: a path, a PIL image, or an array [height, width, 3] of bytes.

    Raises:
      FileNotFoundError: no such file.
      TypeError, ValueError: a file that is no image, or something else altogether.
    """
    if isinstance(image, str | os.PathLike):
        path = pathlib.Path(image)
        if not path.is_file():
            raise FileNotFoundError(f"no image file {str(path)!r}")
        try:
            return decode_image(path.read_bytes(), str(path))
        except BrokenSample as error:
            raise ValueError(str(error)) from None
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image))
    if not hasattr(image, "__array__"):
        raise TypeError(
            "an image is a path, a PIL image or an array [height, width, 3] of uint8, "
            f"not {type(image).__name__}"
        )
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(
            "an image array is [height, width, 3] of uint8, not "
            f"{list(pixels.shape)} of {pixels.dtype}"
        )
    return pixels


def as_images(images: Any, size: int) -> UInt8[Array, "B S S 3"]:
    """One image or several (a list, or an array [B, height, width, 3]), resized.

    Raises:
      ValueError: no image at all, and as `as_pixels`.
    """
    rows = [evaluation_image(as_pixels(image), size) for image in _items(images, 3)]
    if not rows:
        raise ValueError("no image was given")
    return np.stack(rows)


def as_features(features: Any, num_tokens: int, width: int) -> Float[Array, "B P D"]:
    """Precomputed features of one image or several.

    Raises:
      ValueError: another shape than the model was trained on.
    """
    rows = [np.asarray(row) for row in _items(features, 2)]
    shapes = {row.shape for row in rows}
    if shapes != {(num_tokens, width)}:
        given = ", ".join(str(list(shape)) for shape in sorted(shapes)) or "nothing"
        raise ValueError(
            f"this model takes features of {num_tokens} x {width} an image, got {given}"
        )
    return np.stack(rows)


def as_model_images(
    vision: ViTConfig | FeaturesConfig,
    images: Any,
    features: Any,
    *,
    several: bool = False,
) -> Shaped[Array, "B ..."]:
    """Images or features, whichever the model takes.

    Args:
      vision: the model's.
      images, features: one of them.
      several: a row may be several images, as a list of lists or an array
        [B, N, height, width, 3]; the result is then [B, N, ...].

    Raises:
      ValueError: the other one, both or neither was given, or rows of unequal numbers
        of images.
    """
    pair = (("images", images), ("features", features))
    given = [name for name, value in pair if value is not None]
    if isinstance(vision, FeaturesConfig):
        if given != ["features"]:
            raise ValueError(
                f"this model was trained on features ({vision.num_tokens} x "
                f"{vision.width} an image): pass features=, not "
                f"{' and '.join(given) or 'nothing'}"
            )
        tokens, width = vision.num_tokens, vision.width
        return _stacked(features, 2, several, lambda x: as_features(x, tokens, width))
    if given != ["images"]:
        raise ValueError(
            "this model has an image encoder: pass images, not "
            f"{' and '.join(given) or 'nothing'}"
        )
    return _stacked(images, 3, several, lambda x: as_images(x, vision.image_size))


def _stacked(
    given: Any, rank: int, several: bool, convert: Callable[[Any], Array]
) -> Shaped[Array, "B ..."]:
    """Rows of one image each, or of several where that is allowed and given."""
    items = _items(given, rank)
    if not any(_is_list(row, rank) for row in items):
        return convert(given)
    if not several:
        raise ValueError(
            "several images in one row are for a stage-2 model's caption, answer and "
            "generate; give one image a row here"
        )
    counts = [len(row) if _is_list(row, rank) else 1 for row in items]
    if len(set(counts)) > 1:
        told = ", ".join(map(str, counts))
        raise ValueError(f"all rows need as many images as each other, got {told}")
    return np.stack([convert(row) for row in items])


def _is_list(item: Any, rank: int) -> bool:
    """Whether this is several images (or features), not one."""
    return isinstance(item, list | tuple) or getattr(item, "ndim", rank) == rank + 1


def _items(given: Any, single_rank: int) -> Sequence[Any]:
    """A list, whether one thing or several were given."""
    if isinstance(given, list | tuple):
        return given
    if getattr(given, "ndim", single_rank) > single_rank:
        return list(given)
    return [given]


def as_texts(texts: str | Sequence[str], what: str) -> list[str]:
    """A list of strings, whether one or several were given.

    Raises:
      TypeError: something else is among them.
    """
    listed = [texts] if isinstance(texts, str) else list(texts)
    for text in listed:
        if not isinstance(text, str):
            raise TypeError(f"{what} are strings, not {type(text).__name__}")
    if not listed:
        raise ValueError(f"no {what} were given")
    return listed


def align(**given: Sequence[T] | Shaped[Array, "B ..."]) -> tuple[Any, ...]:
    """Give all arguments the same length; a single entry stands for every row.

    Raises:
      ValueError: lengths that are neither one nor equal.
    """
    rows = max(map(len, given.values()))
    if any(len(values) not in (1, rows) for values in given.values()):
        counts = ", ".join(f"{len(values)} {name}" for name, values in given.items())
        raise ValueError(f"{counts}: give as many of each, or one for all")
    return tuple(_repeated(values, rows) for values in given.values())


def places(given: Sequence[int] | None, images: int) -> list[int]:
    """The place of the image that each row is about; None: the rows are the images.

    Raises:
      ValueError: a place where no image is.
    """
    if given is None:
        return list(range(images))
    wrong = [place for place in given if not 0 <= place < images]
    if wrong:
        raise ValueError(f"image_of names image {wrong[0]}, and there are {images}")
    return list(given)


def _repeated(values: Any, rows: int) -> Any:
    if len(values) == rows:
        return values
    return np.repeat(values, rows, 0) if hasattr(values, "shape") else [*values] * rows


def bucket(count: int, step: int, most: int) -> int:
    """The next multiple of `step`, at most `most`: one compiled program for many."""
    return min(-(-count // step) * step, most)


def chunks(rows: int, batch_size: int) -> Iterator[tuple[slice, int]]:
    """Slices of at most `batch_size` rows, and the size to pad each to.

    Full chunks have `batch_size` rows; the last one the next power of two.
    """
    for start in range(0, rows, batch_size):
        count = min(batch_size, rows - start)
        size = min(1 << (count - 1).bit_length(), batch_size)
        yield slice(start, start + count), size


def padded(values: Shaped[Array, "n ..."], size: int) -> Shaped[Array, "B ..."]:
    """`size` rows, the last one repeated."""
    missing = size - len(values)
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])
