"""A table of captions in a text file: a row per image or per caption.

All layouts with named columns read their rows here, so that the same row gives the same
record in every layout.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from blip2_jax.data.sources.base import Question
from blip2_jax.data.sources.checked_rows import (
    RecordsSource,
    Row,
    check_usable,
    group_by_image,
    parse_rows,
    take_id,
    take_mapping,
    take_name,
    take_text,
    take_texts,
)
from blip2_jax.data.sources.columns import Columns, find_columns
from blip2_jax.data.sources.files import ImageFiles

_TEXT_KEYS = ("answer", "raw", "caption", "text")  # of a text that is an object


class Table(NamedTuple):
    """A table that has been read.

    Attributes:
      names: names of its columns.
      rows: number of every row, from 1, and its values by column, or a `ValueError` if
        the row cannot be read; can be read once.
      unit: what the numbers count: "row" or "line".
    """

    names: list[str]
    rows: Iterator[tuple[int, Any]]
    unit: str

    def readable_rows(self) -> Iterator[Mapping[str, Any]]:
        """Yield the values of the rows that can be read."""
        return (values for _, values in self.rows if isinstance(values, Mapping))


class TableSource(RecordsSource):
    """Images with captions or questions from a table; subclasses read the file.

    All rows of an image become one record: an epoch shows every image once, with one of
    its captions. A malformed row is a broken sample.

    Attributes:
      kind: kind of the source.
      title: name of the layout.
      columns: the columns that are used.

    Args:
      path: path of the file.
      images: the directory to which image names are relative.
      columns: names of columns by field (see `columns.USUAL_NAMES`); fields without a
        name are found by their usual names.
      image_name: format of a file name from the image column's value: "{}.jpg" adds the
        suffix, "{:012d}.jpg" makes a number of 12 digits.
      splits: values of the split column to take; (): all rows.
      remap: see `ImageFiles`.

    Raises:
      FileNotFoundError: the file or the directory does not exist.
      ValueError: the file has another format, a column is missing, or no row is usable.
    """

    kind: str
    title: str

    def __init__(
        self,
        path: str,
        images: str,
        columns: Mapping[str, str | Sequence[str]] | None = None,
        image_name: str = "{}",
        splits: Sequence[str] = (),
        remap: Mapping[str, str] | None = None,
    ):
        self.name = f"{self.kind}:{path}"
        self._files = ImageFiles(images, remap)
        table = self.read_table(path)
        self.columns = found = find_columns(table.names, columns, path)
        rows = parse_rows(
            path,
            select_splits(table.rows, found.split, splits, path),
            lambda values: parse_row(
                values, found, file_name(values, found, image_name)
            ),
            table.unit,
        )
        if splits and not rows:
            raise ValueError(f"{path} has no row with {found.split!r} in {splits}")
        check_usable(rows, f"no {table.unit} of {path} is usable")
        super().__init__(group_by_image(rows))

    @classmethod
    @abc.abstractmethod
    def read_table(cls, path: str) -> Table:
        """Read the table of a file.

        Raises:
          FileNotFoundError: the file does not exist.
          ValueError: the file has another format.
        """


def select_splits(
    rows: Iterator[tuple[int, Any]], column: str, splits: Sequence[str], path: str
) -> Iterator[tuple[int, Any]]:
    """Select the rows of some splits; rows that cannot be read belong to all.

    Args:
      rows: see `Table`.
      column: the column of splits, "" if there is none.
      splits: values of the column; (): all rows.
      path: the file, in errors.

    Raises:
      ValueError: there is no column of splits.
    """
    if not splits:
        return rows
    if not column:
        raise ValueError(f"{path} has no column of splits, but splits is {splits}")
    return (
        (number, values)
        for number, values in rows
        if not isinstance(values, Mapping) or str(values.get(column)) in splits
    )


def file_name(values: Any, columns: Columns, image_name: str = "{}") -> str:
    """Return the name of a row's image file.

    Args:
      values: values by column, or the error of a row that cannot be read.
      columns: columns of the table.
      image_name: see `TableSource`.

    Raises:
      ValueError: the row cannot be read, or the value is no name.
    """
    if isinstance(values, ValueError):
        raise values
    value = take_id(take_mapping(values).get(columns.image), columns.image)
    name = take_name("" if value is None else str(value), columns.image)
    try:
        return image_name.format(name)
    except ValueError:  # "{:012d}" needs a number
        return image_name.format(int(name))


def parse_row(values: Mapping[str, Any], columns: Columns, image: str) -> Row:
    """Convert the values of a row.

    Args:
      values: values by column.
      columns: columns of the table.
      image: name of the image.

    Raises:
      ValueError: a value has the wrong type.
    """
    captions = [text for name in columns.caption for text in _texts(values, name)]
    questions: tuple[Question, ...] = ()
    if text := _texts(values, columns.question):
        question_id = take_id(_cell(values, columns.question_id), columns.question_id)
        answers = _texts(values, columns.answer)
        questions = (Question(text[0], answers, question_id),)
    original = take_id(_cell(values, columns.image_id), columns.image_id)
    part = take_text(_cell(values, columns.part) or "", columns.part)
    return Row(image, tuple(captions), questions, original, part)


def _cell(values: Mapping[str, Any], column: str) -> Any:
    """Return a cell; None if it is empty or the table has no such column."""
    if not column:  # pandas writes its index as a column that is called ""
        return None
    value = values.get(column)
    return None if value == "" else value


def _texts(values: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """Return the texts of a cell: one, a list of texts or objects, none if empty."""
    value = _cell(values, column)
    if value is None:
        return ()
    if isinstance(value, str) and value.startswith('["'):  # a list in a CSV file
        value = _json_list(value)
    if isinstance(value, list | tuple):
        value = [_text_of(element) for element in value]
    return take_texts(value, column)


def _json_list(text: str) -> Any:
    """Return the list that a cell spells as JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text_of(element: Any) -> Any:
    """Return the text of an object such as `{"answer": "red"}`, else the element."""
    if not isinstance(element, Mapping):
        return element
    return next((element[key] for key in _TEXT_KEYS if key in element), element)
