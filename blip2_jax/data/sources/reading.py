"""Reading of single elements of any source: what goes wrong is a broken sample.

A source is expected to raise `BrokenSample` for a defective element. These functions
turn every other exception into one too, so that one element never ends a run, and they
check the types of records, so that texts and ids are what the code behind expects.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from collections.abc import Iterator

from jaxtyping import Shaped
from numpy import ndarray as Array
from PIL import Image

from blip2_jax.data.broken_samples import BrokenSampleStats
from blip2_jax.data.images import decode_image
from blip2_jax.data.sources.base import BrokenSample, Record, Source
from blip2_jax.data.sources.checked_rows import (
    describe_problem,
    take_id,
    take_text,
    take_texts,
)
from blip2_jax.parallel.store_retries import StoreError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def broken_on_error(cause: str, key: str) -> Iterator[None]:
    """Raise `BrokenSample(cause, key)` for any exception of the block.

    A `BrokenSample` passes unchanged, and so does a `StoreError`: with a store that is
    away no sample is broken.
    """
    try:
        yield
    except (BrokenSample, StoreError):
        raise
    except Exception as error:
        raise BrokenSample(cause, key, describe_problem(error)) from error


def read_record(source: Source, index: int) -> Record:
    """Read a record and check the types of its fields.

    Raises:
      BrokenSample: the record cannot be read, or a field has a wrong type.
    """
    with broken_on_error("unreadable record", f"{source.name} record {index}"):
        record = source.record(index)
        _check(record)
    return record


def _check(record: Record) -> None:
    """Check the fields of a record.

    Raises:
      ValueError: a field has a wrong type.
    """
    take_text(record.key, "key")
    take_texts(record.captions, "captions")
    take_id(record.original_id, "original_id")
    take_text(record.description, "description")
    for question in record.questions:
        take_text(question.text, "question")
        take_texts(question.answers, "answers")
        take_id(question.question_id, "question_id")


def readable_records(source: Source) -> Iterator[Record]:
    """Yield the records of a source; a warning counts the broken ones."""
    stats = BrokenSampleStats()
    for index in range(len(source)):
        try:
            record = read_record(source, index)
        except BrokenSample as error:
            stats.add(1, [(error.cause, error.place)])
        else:
            yield record
    if stats.counts:
        logger.warning("%s: broken and left out: %s", source.name, stats)


def read_pixels(
    source: Source, index: int, key: str, at_least: int = 0
) -> Shaped[Array, "height width 3"]:
    """Load the pixels of a record's image.

    Args:
      source: a source of pixels.
      index: index of the record.
      key: key of the record, for messages.
      at_least: see `Source.load_image`.

    Raises:
      BrokenSample: the image cannot be read.
    """
    with broken_on_error("unreadable image", key):
        return source.load_image(index, at_least)


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """The content of an image file in a format that tars of records hold.

    Attributes:
      data: the content of the file.
      suffix: of its name: "jpg", "png" or "webp".
    """

    data: bytes
    suffix: str


def read_encoded(source: Source, index: int, key: str) -> EncodedImage:
    """Read a record's image as the file that a tar of records holds.

    The file is copied if its format is JPEG, PNG or WebP; other images become PNGs.

    Args:
      source: a source of pixels.
      index: index of the record.
      key: key of the record, for messages.

    Raises:
      BrokenSample: the image cannot be read. The content of a file is not checked.
    """
    with broken_on_error("unreadable image", key):
        data = source.encoded_image(index)
        if data is not None:
            return as_tar_image(data, key)
        return _as_png(source.load_image(index))


def as_tar_image(data: bytes, key: str) -> EncodedImage:
    """Return the content of an image file as a tar of records holds it.

    Args:
      data: the content; formats other than JPEG, PNG and WebP become PNG.
      key: name of the image in errors.

    Raises:
      BrokenSample: another format, which cannot be decoded.
    """
    suffix = _suffix(data)
    return EncodedImage(data, suffix) if suffix else _as_png(decode_image(data, key))


def _as_png(pixels: Shaped[Array, "height width 3"]) -> EncodedImage:
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return EncodedImage(png.getvalue(), "png")


def _suffix(data: bytes) -> str:
    """Recognise the format of an image file; "" for formats that tars do not hold."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def read_features(
    source: Source, index: int, key: str, crop: int = 0
) -> Shaped[Array, "P D"]:
    """Load the features of a record's image.

    Args:
      source: a source of features.
      index: index of the record.
      key: key of the record, for messages.
      crop: number of the crop.

    Raises:
      BrokenSample: the features cannot be read.
    """
    with broken_on_error("unreadable features", key):
        return source.load_features(index, crop)
