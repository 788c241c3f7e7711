"""Parquet files, and Hugging Face data sets saved on disk.

Texts are held as Arrow arrays and converted row by row; images are read when they are
needed.
"""

from __future__ import annotations

import abc
import dataclasses
import glob
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int, UInt8
from numpy import ndarray as Array

from blip2_jax.data.images import decode_image
from blip2_jax.data.sources.arrow_files import ArrowFiles, ParquetFiles, SavedDataset
from blip2_jax.data.sources.base import BrokenSample, Record, Source
from blip2_jax.data.sources.checked_rows import (
    MALFORMED_ROW,
    Row,
    describe_problem,
    group_by_image,
)
from blip2_jax.data.sources.columns import find_columns
from blip2_jax.data.sources.content_digest import (
    TEXTS,
    Digests,
    file_digests,
    hash_parts,
)
from blip2_jax.data.sources.files import ImageFiles, expand_paths
from blip2_jax.data.sources.table_source import file_name, parse_row
from blip2_jax.parallel.paths import as_path

_HASHED_ROWS = 10_000  # at a time


class ArrowSource(Source):
    """Images with captions or questions from a table in one of Arrow's formats.

    The image column holds encoded images, as `binary` or as Hugging Face's struct of
    `bytes` and `path`, or names of image files. Rows with equal image ids, or with
    equal names of image files, become one record; other rows are a record each.

    Attributes:
      columns: the columns that are used.

    Args:
      path: path of the data; see the subclasses.
      images: the directory to which names of image files are relative; "": that of the
        data.
      columns: see `TableSource`.
      image_name: see `TableSource`.
      splits: see `TableSource`.

    Raises:
      FileNotFoundError: a file or the directory does not exist.
      ValueError: a file is damaged or has another format, or a column is missing.
    """

    kind: str
    title: str

    def __init__(
        self,
        path: str,
        images: str = "",
        columns: Mapping[str, str | Sequence[str]] | None = None,
        image_name: str = "{}",
        splits: Sequence[str] = (),
    ):
        self.name = f"{self.kind}:{path}"
        self._files = files = self.open_files(path)
        self._images = ImageFiles(images or str(files.directory))
        self._image_name = image_name
        encoded = encoded_columns(files.schema)
        self.columns = find_columns(files.schema.names, columns, path, encoded)
        self._is_encoded = self.columns.image in encoded
        self._texts = files.read(self._text_columns())
        column = self.columns.image_id if self._is_encoded else self.columns.image
        rows = self._select_rows(splits)
        # The rows of record i are _rows[_starts[i] : _starts[i + 1]].
        self._rows, self._starts = _group(rows, self._texts, column, path)

    @classmethod
    @abc.abstractmethod
    def open_files(cls, path: str) -> ArrowFiles:
        """Open the files of a path."""

    def _text_columns(self) -> list[str]:
        """Return the columns to hold in memory: all but encoded images."""
        used = self.columns
        names = [*used.caption, used.question, used.answer, used.image_id]
        names += [used.question_id, used.split, used.part]
        names += [] if self._is_encoded else [used.image]
        return [name for name in dict.fromkeys(names) if name]

    def _select_rows(self, splits: Sequence[str]) -> Int[Array, " rows"]:
        """Return the numbers of the rows of some splits; (): all."""
        if not splits:
            return np.arange(len(self._texts))
        if not self.columns.split:
            raise ValueError(f"{self.name} has no column of splits, not {splits}")
        column = self._texts[self.columns.split]
        try:
            chosen = pc.is_in(column, value_set=pa.array(list(splits), column.type))
        except (pa.ArrowException, TypeError):
            raise ValueError(
                f"column {self.columns.split!r} of {self.name} holds {column.type}; "
                "it should hold names of splits"
            ) from None
        rows = np.flatnonzero(chosen.to_numpy())
        if not len(rows):
            raise ValueError(f"{self.name} has no row of the splits {splits}")
        return rows

    def __len__(self) -> int:
        return len(self._starts) - 1

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        numbers = self._rows[self._starts[index] : self._starts[index + 1]]
        rows = [self._row(int(number)) for number in numbers]
        record = group_by_image(rows)[0]
        assert isinstance(record, Record)  # a broken row raises
        return dataclasses.replace(record, image_id=index)

    def _row(self, number: int) -> Row:
        """Read the texts of a row."""
        place = self._files.place(number)
        try:
            values = self._texts.slice(number, 1).to_pylist()[0]
            if not self._is_encoded:
                key = file_name(values, self.columns, self._image_name)
            elif (image_id := values.get(self.columns.image_id)) is not None:
                key = str(image_id)
            else:
                key = place
            return parse_row(values, self.columns, key)
        except Exception as error:  # of values with a type that no layout has
            problem = describe_problem(error)
            raise BrokenSample(MALFORMED_ROW, place, problem) from None

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the image of a record; see `Source`."""
        if not self._is_encoded:
            return self._images.load(self.record(index).key, at_least)
        return decode_image(self.encoded_image(index), self._place(index), at_least)

    def _place(self, index: int) -> str:
        """Return the place of a record's first row, for errors."""
        return self._files.place(int(self._rows[self._starts[index]]))

    def encoded_image(self, index: int) -> bytes:
        """Read the image of a record; see `Source`."""
        if not self._is_encoded:
            return self._images.read(self.record(index).key)
        number, place = int(self._rows[self._starts[index]]), self._place(index)
        try:
            value = self._files.cell(number, self.columns.image)
        except (OSError, pa.ArrowException) as error:
            raise BrokenSample("unreadable image", place, str(error)) from None
        path = None
        if isinstance(value, Mapping):
            value, path = value["bytes"], value.get("path")
        if value is not None:
            data: bytes = value
            return data
        if not path:
            raise BrokenSample("missing image", place)
        return self._images.read(path)

    def content(self) -> Digests:
        """Return digests of all texts and of the files; see `Source`."""
        batches = self._texts.to_batches(_HASHED_ROWS)
        texts = map(_batch_bytes, batches)
        return {
            TEXTS: hash_parts([self._rows.view(np.uint8).data, *texts]),
            **file_digests(self._files.paths, "table "),
            **self._image_files(),
        }

    def image_path(self, index: int) -> pathlib.Path | None:
        """Return the path of a record's image; see `Source`."""
        if self._is_encoded:
            return None
        record = self._record_or_broken(index)
        return self._images.path(record.key) if isinstance(record, Record) else None

    def check_image(self, index: int) -> None:
        """Check that an image file exists; see `Source`."""
        if not self._is_encoded:
            self._images.check(self.record(index).key)


class ParquetSource(ArrowSource):
    """Images with captions or questions from Parquet files; see `ArrowSource`.

    The path is a file, a folder of `.parquet` files, or a glob pattern.
    """

    kind = "parquet"
    title = "Parquet"

    @classmethod
    def open_files(cls, path: str) -> ArrowFiles:
        """Open the files of a path."""
        if as_path(path).is_dir():
            path = f"{glob.escape(path)}/*.parquet"
        return ParquetFiles(expand_paths([path], "Parquet file"))


class SavedDatasetSource(ArrowSource):
    """A data set saved by Hugging Face's `save_to_disk`; see `ArrowSource`.

    The path is the folder of one split, which holds `state.json`. The package
    `datasets` is not needed.
    """

    kind = "saved_dataset"
    title = "data set on disk"

    @classmethod
    def open_files(cls, path: str) -> ArrowFiles:
        """Open the files of a folder."""
        return SavedDataset(as_path(path))


def _batch_bytes(batch: pa.RecordBatch) -> bytes:
    """Return the bytes of some rows, for a digest."""
    try:
        return str(batch.to_pylist()).encode()
    except UnicodeDecodeError:  # of damaged text, which is a broken row when it is read
        buffers = [buffer for column in batch for buffer in column.buffers() if buffer]
        return b"".join(map(bytes, buffers))


def encoded_columns(schema: pa.Schema) -> list[str]:
    """Return the columns of encoded images: binary, or structs with `bytes`."""
    return [field.name for field in schema if _is_encoded(field.type)]


def _is_encoded(type_: pa.DataType) -> bool:
    """Return True for the type of a column of encoded images."""
    if pa.types.is_struct(type_):
        return any(field.name == "bytes" for field in type_)
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_)


def _group(
    rows: Int[Array, " rows"], texts: pa.Table, column: str, table: str
) -> tuple[Int[Array, " rows"], Int[Array, " records_and_end"]]:
    """Group rows with equal values of a column, in the order of first appearance.

    Args:
      rows: numbers of the rows.
      texts: the table.
      column: the column, "" for none. Rows without a value are groups of their own.
      table: name of the table in errors.

    Returns:
      The rows, ordered by group, and the start of each group, followed by the end.
    """
    if not column:
        return rows, np.arange(len(rows) + 1)
    try:
        values = texts[column].take(rows).cast(pa.large_string()).combine_chunks()
    except pa.ArrowException:
        raise ValueError(
            f"column {column!r} of {table} holds {texts[column].type}; it should hold "
            "names or ids of images"
        ) from None
    codes = np.asarray(values.dictionary_encode().indices.fill_null(-1), np.int64)
    codes = np.where(codes < 0, -1 - np.arange(len(rows)), codes)
    _, first, group = np.unique(codes, return_index=True, return_inverse=True)
    group = np.argsort(np.argsort(first))[group]
    starts = np.searchsorted(np.sort(group), np.arange(len(first) + 1))
    return rows[np.argsort(group, kind="stable")], starts
