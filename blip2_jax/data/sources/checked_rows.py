"""Rows of annotation files, checked on reading: a malformed row is a broken sample.

`parse_rows` calls the parser of a layout on every row. The parser takes its fields with
`take_text`, `take_texts`, `take_name` and `take_id`, which check types. Whatever the
parser raises, the row becomes a `BrokenSample` with file and row number, and the other
rows are read. `group_by_image` makes records of the rows, and `RecordsSource` is a
source that holds them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.sources.base import (
    BrokenSample,
    Question,
    Record,
    Source,
    texts_digest,
)
from blip2_jax.data.sources.content_digest import TEXTS, Digests
from blip2_jax.data.sources.files import ImageFiles

T = TypeVar("T")

MALFORMED_ROW = "malformed row"
_SHOWN = 40  # characters of a wrong value in messages


@dataclasses.dataclass(frozen=True)
class Row:
    """The image and the texts that a row of an annotation file names.

    Attributes:
      image: name of the image.
      captions: captions as stored.
      questions: questions about the image.
      original_id: the data set's own image id.
      part: part of the data set with separate scores.
    """

    image: str
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    original_id: int | str | None = None
    part: str = ""


def take_text(value: Any, field: str) -> str:
    """Return a value that must be text which can be written as UTF-8.

    Args:
      value: the value.
      field: name of the field in errors.

    Raises:
      ValueError: the value is no str, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise ValueError(f"{field} is {_shown(value)}, not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{field} is {_shown(value)}, which holds half a surrogate pair"
            ) from None
    return value


def take_texts(value: Any, field: str) -> tuple[str, ...]:
    """Return the texts of a value that must be a text or a list of texts.

    Raises:
      ValueError: see `take_text`.
    """
    if isinstance(value, str):
        return (take_text(value, field),)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{field} is {_shown(value)}, neither a text nor a list")
    return tuple(take_text(item, f"{field}[{n}]") for n, item in enumerate(value))


def take_name(value: Any, field: str = "image") -> str:
    """Return a value that must be a file name: text without NUL, not empty.

    Raises:
      ValueError: the value is none.
    """
    name = take_text(value, field)
    if not name or "\0" in name:
        raise ValueError(f"{field} is {_shown(name)}, not a file name")
    return name


def take_id(value: Any, field: str) -> int | str | None:
    """Return an id: a whole number, a text, or None if there is none.

    Raises:
      ValueError: the value has another type.
    """
    if isinstance(value, float) and value.is_integer():  # as tables write numbers
        return int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    return take_text(value, field)


def take_mapping(value: Any) -> Mapping[str, Any]:
    """Return a row that must be an object with named fields.

    Raises:
      ValueError: the row is something else.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"the row is {_shown(value)}, not an object")
    return value


def _shown(value: Any) -> str:
    """Format a value for a message, null as in JSON."""
    text = "null" if value is None else ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def describe_problem(error: Exception) -> str:
    """Return what is wrong with a row, from the exception of its parser."""
    if isinstance(error, KeyError) and error.args:
        return f"no key {error.args[0]!r}"
    if isinstance(error, ValueError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def parse_rows(
    path: str, items: Iterable[tuple[int, Any]], parse: Callable[[Any], T], unit: str
) -> list[T | BrokenSample]:
    """Parse every row of a file; a row that cannot be parsed is a broken sample.

    Args:
      path: the file, in messages.
      items: the number of every row, from 1, and its content.
      parse: makes a row of the content; whatever it raises is the row's defect.
      unit: what is numbered: "row", "line", "image", ...

    Returns:
      The parsed rows; `BrokenSample` for malformed ones.
    """
    rows: list[T | BrokenSample] = []
    for number, item in items:
        try:
            rows.append(parse(item))
        except Exception as error:
            place = f"{path} {unit} {number}"
            rows.append(BrokenSample(MALFORMED_ROW, place, describe_problem(error)))
    return rows


def check_usable(rows: Sequence[object], problem: str) -> None:
    """Check that not all rows of a file are malformed.

    Args:
      rows: from `parse_rows`.
      problem: start of the message, with the file's name.

    Raises:
      ValueError: all rows are malformed; the message describes the first.
    """
    if rows and all(isinstance(row, BrokenSample) for row in rows):
        raise ValueError(f"{problem}: {rows[0]}")


def group_by_image(rows: Iterable[Row | BrokenSample]) -> list[Record | BrokenSample]:
    """Make one record per image, in the order of first appearance.

    A malformed row stays an element of its own, so that it is counted like a record.
    """
    entries: list[list[Row] | BrokenSample] = []
    of_image: dict[str, list[Row]] = {}
    for row in rows:
        if isinstance(row, BrokenSample):
            entries.append(row)
        elif row.image in of_image:
            of_image[row.image].append(row)
        else:
            of_image[row.image] = [row]
            entries.append(of_image[row.image])
    return [
        entry if isinstance(entry, BrokenSample) else _join(index, entry)
        for index, entry in enumerate(entries)
    ]


def _join(index: int, rows: Sequence[Row]) -> Record:
    """Join the rows of an image to a record with index `index`."""
    first = rows[0]
    return Record(
        first.image,
        index,
        tuple(caption for row in rows for caption in row.captions),
        tuple(question for row in rows for question in row.questions),
        first.original_id,
        part=first.part,
    )


class RecordsSource(Source):
    """A source whose records are in memory, those of malformed rows included.

    Subclasses set `name`, and `_files` if the images are files named by the records'
    keys.
    """

    _files: ImageFiles | None = None

    def __init__(self, records: Sequence[Record | BrokenSample]):
        """Hold the records, e.g. of `group_by_image`."""
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        record = self._records[index]
        if isinstance(record, BrokenSample):
            # A new exception: one that is raised again and again collects tracebacks.
            raise BrokenSample(record.cause, record.key, record.detail)
        return record

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the image of a record; see `Source`."""
        if self._files is None:
            return super().load_image(index, at_least)
        return self._files.load(self.record(index).key, at_least)

    def encoded_image(self, index: int) -> bytes | None:
        """Read the image file of a record; see `Source`."""
        if self._files is None:
            return super().encoded_image(index)
        return self._files.read(self.record(index).key)

    def check_image(self, index: int) -> None:
        """Check that the image is a file; see `Source`."""
        if self._files is not None:
            self._files.check(self.record(index).key)

    def content(self) -> Digests:
        """Return digests of all texts and of the image files; see `Source`."""
        return {TEXTS: texts_digest(self._records), **self._image_files()}

    def image_path(self, index: int) -> pathlib.Path | None:
        """Return the path of a record's image file; see `Source`."""
        record = self._records[index]
        if self._files is None or isinstance(record, BrokenSample):
            return None
        return self._files.path(record.key)
