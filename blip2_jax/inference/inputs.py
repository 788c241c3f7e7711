"""Conversion of users' images, features and texts to arrays of known shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from numpy import ndarray as Array

from blip2_jax.data.dataclass_options import is_integer
from blip2_jax.data.images import evaluation_image
from blip2_jax.inference.user_images import as_numpy, as_pixels
from blip2_jax.models.sizes import FeaturesConfig, ViTConfig

LENGTH_STEP = 8  # token arrays are padded to a multiple of this
T = TypeVar("T")


def as_images(
    images: Any, size: int, transform: Callable[..., Array] = evaluation_image
) -> UInt8[Array, "B height width 3"]:
    """Convert one image or several to an array of `size` x `size` pixels.

    Args:
      images: one image (see `as_pixels`), a list of them, or an array
        [B, height, width, 3].
      size: height and width of the result.
      transform: function of pixels and `size`.

    Raises:
      ValueError: there are no images, or as `as_pixels`.
    """
    rows = [transform(as_pixels(image), size) for image in _as_list(images, 3)]
    if not rows:
        raise ValueError("no image was given")
    return np.stack(rows)


def as_features(features: Any, num_tokens: int, width: int) -> Float[Array, "B P D"]:
    """Convert the precomputed features of one image or several to an array.

    Raises:
      ValueError: the shape is not [`num_tokens`, `width`] per image.
    """
    rows = [as_numpy(row) for row in _as_list(features, 2)]
    shapes = {row.shape for row in rows}
    if shapes != {(num_tokens, width)}:
        actual = ", ".join(str(list(shape)) for shape in sorted(shapes)) or "nothing"
        raise ValueError(
            f"this model takes features of {num_tokens} x {width} an image, "
            f"got {actual}"
        )
    return np.stack(rows)


def as_model_images(
    vision: ViTConfig | FeaturesConfig,
    images: Any,
    features: Any,
    *,
    several: bool = False,
) -> Shaped[Array, "B ..."]:
    """Convert images or features, depending on what the model takes.

    A model with an image encoder takes features that this encoder computed.

    Args:
      vision: configuration of the model's image encoder.
      images: images, or None.
      features: features, or None.
      several: allow several images per row, as a list of lists or an array
        [B, images, height, width, 3]; the result is then [B, images, ...].

    Raises:
      ValueError: the model takes the other argument, both or neither were given, or
        rows have unequal numbers of images.
    """
    arguments = (("images", images), ("features", features))
    names = [name for name, value in arguments if value is not None]
    if isinstance(vision, FeaturesConfig):
        if names != ["features"]:
            raise ValueError(
                f"this model was trained on features ({vision.num_tokens} x "
                f"{vision.width} an image): pass features=, not "
                f"{' and '.join(names) or 'nothing'}"
            )
        tokens, width = vision.num_tokens, vision.width
        return _convert_rows(
            features, 2, several, lambda rows: as_features(rows, tokens, width)
        )
    if names == ["features"]:
        return as_features(features, vision.num_tokens, vision.width)
    if names != ["images"]:
        raise ValueError(
            "this model has an image encoder: pass images, or its features, not "
            f"{' and '.join(names) or 'nothing'}"
        )
    size = vision.image_size
    return _convert_rows(images, 3, several, lambda rows: as_images(rows, size))


def _convert_rows(
    rows: Any, rank: int, several: bool, convert: Callable[[Any], Array]
) -> Shaped[Array, "B ..."]:
    """Convert rows of one item each, or of several if that is allowed.

    Args:
      rows: see `as_model_images`.
      rank: number of axes of a single image or its features.
      several: allow several items per row.
      convert: function that converts a list of items.
    """
    items = _as_list(rows, rank)
    if not any(_is_list(row, rank) for row in items):
        return convert(rows)
    if not several:
        raise ValueError(
            "several images in one row are for a stage-2 model's caption, answer and "
            "generate; give one image per row here"
        )
    counts = [len(row) if _is_list(row, rank) else 1 for row in items]
    if len(set(counts)) > 1:
        raise ValueError(
            "all rows need the same number of images, got "
            f"{', '.join(map(str, counts))}"
        )
    return np.stack([convert(row) for row in items])


def _is_list(item: Any, rank: int) -> bool:
    """Return True if `item` holds several images (or features) of `rank` axes."""
    return isinstance(item, list | tuple) or getattr(item, "ndim", rank) == rank + 1


def _as_list(items: Any, rank: int) -> Sequence[Any]:
    """Return a list of one item of `rank` axes, or of several."""
    if isinstance(items, list | tuple):
        return items
    return list(items) if getattr(items, "ndim", rank) > rank else [items]


def as_texts(texts: str | Sequence[str], name: str) -> list[str]:
    """Return a list of one string or several.

    Args:
      texts: a string or a sequence of strings.
      name: name of the argument, for error messages.

    Raises:
      TypeError: an item is not a string, or there is no sequence. Sets and mappings are
        refused, because their order is not that of the results.
      ValueError: the sequence is empty, or a text is no valid Unicode.
    """
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, Iterable) or isinstance(texts, Set | Mapping | bytes):
        raise TypeError(
            f"{name} are a string or a list of strings, not {type(texts).__name__}"
        )
    items = list(texts)
    for item in items:
        if not isinstance(item, str):
            raise TypeError(f"{name} are strings, not {type(item).__name__}")
        _check_unicode(item, name)
    if not items:
        raise ValueError(f"no {name} were given")
    return items


def _check_unicode(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} contain {text!r}, whose character {error.start} is half of a "
            "surrogate pair and no text"
        ) from None


def align(**arguments: Sequence[T] | Shaped[Array, "..."]) -> tuple[Any, ...]:
    """Broadcast arguments to one length; an argument with one row is repeated.

    Raises:
      ValueError: lengths differ and are not one.
    """
    rows = max(map(len, arguments.values()))
    if any(len(values) not in (1, rows) for values in arguments.values()):
        counts = ", ".join(
            f"{len(values)} {name}" for name, values in arguments.items()
        )
        raise ValueError(f"{counts}: give as many of each, or one for all")
    return tuple(_repeat(values, rows) for values in arguments.values())


def _repeat(values: Any, rows: int) -> Any:
    if len(values) == rows:
        return values
    return np.repeat(values, rows, 0) if hasattr(values, "shape") else [*values] * rows


def image_indices(image_of: Sequence[int] | None, num_images: int) -> list[int]:
    """Return the image index of each row; None: row i is about image i.

    Raises:
      ValueError: an index is no whole number, or out of range.
    """
    if image_of is None:
        return list(range(num_images))
    wrong = [
        index
        for index in image_of
        if not (is_integer(index) and 0 <= index < num_images)
    ]
    if wrong:
        raise ValueError(f"image_of names image {wrong[0]}, and there are {num_images}")
    return list(image_of)


def padded_length(length: int) -> int:
    """Round a number of tokens up, so that few programs are compiled.

    The results are 8, 16, 24, 32, 48, 64, 96, 128, ...: two for each power of two.
    """
    step = max(LENGTH_STEP, 1 << max((int(length) - 1).bit_length() - 2, 0))
    return -(-length // step) * step


def check_batch_size(batch_size: int) -> None:
    """Check the largest number of rows of a program.

    Raises:
      ValueError: it is below 1.
    """
    if not is_integer(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: expected at least 1")


def batches(rows: int, batch_size: int) -> Iterator[tuple[slice, int]]:
    """Split rows into batches.

    Yields:
      A slice of at most `batch_size` rows and the size to pad it to: `batch_size`, or
      the next power of two for the last batch.
    """
    for start in range(0, rows, batch_size):
        count = min(batch_size, rows - start)
        size = min(1 << (count - 1).bit_length(), batch_size)
        yield slice(start, start + count), size


def pad_batch(rows: Shaped[Array, "rows ..."], size: int) -> Shaped[Array, "B ..."]:
    """Pad an array to `size` rows by repeating the last one."""
    missing = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
