"""Tables in files of Arrow's formats, with random access to cells."""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from blip2_jax.parallel.files import read_json
from blip2_jax.parallel.paths import is_remote
from blip2_jax.parallel.store_cache import local_copy


class ArrowFiles(abc.ABC):
    """Rows of several files, in the order of the files. Can be pickled.

    Attributes:
      paths: the files.
      schema: names and types of the columns.
      directory: directory of the files.

    Args:
      paths: the files.

    Raises:
      ValueError: a file is damaged or has another format or other columns.
    """

    schema: pa.Schema

    def __init__(self, paths: Sequence[pathlib.Path]):
        self.paths = list(paths)
        self.directory = self.paths[0].parent if paths else pathlib.Path()
        self._starts = np.cumsum([0, *map(self._open, self.paths)])

    @abc.abstractmethod
    def _open(self, path: pathlib.Path) -> int:
        """Open a file and return its number of rows."""

    @abc.abstractmethod
    def _read(self, number: int, names: Sequence[str]) -> pa.Table:
        """Read some columns of a file by its number."""

    @abc.abstractmethod
    def _cell(self, number: int, row: int, name: str) -> Any:
        """Read a cell of a file by its number."""

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, names: Sequence[str]) -> pa.Table:
        """Read some columns of all files into memory."""
        tables = [self._read(n, names) for n in range(len(self.paths))]
        try:
            return pa.concat_tables(tables).combine_chunks()
        except pa.ArrowInvalid as error:
            listing = ", ".join(map(str, self.paths[:3]))
            raise ValueError(f"columns of {listing} differ: {error}") from None

    def cell(self, row: int, name: str) -> Any:
        """Read a cell.

        Raises:
          OSError, pyarrow.ArrowException: the file cannot be read.
        """
        number, row_in_file = self._locate(row)
        return self._cell(number, row_in_file, name)

    def place(self, row: int) -> str:
        """Return file and row, counted from 1, for error reports."""
        number, row_in_file = self._locate(row)
        return f"{self.paths[number].name} row {row_in_file + 1}"

    def _locate(self, row: int) -> tuple[int, int]:
        """Return the number of the row's file and the row in it."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return number, row - int(self._starts[number])


class ParquetFiles(ArrowFiles):
    """Parquet files. A cell is read with its row group, of which the last is kept."""

    def __init__(self, paths: Sequence[pathlib.Path]):
        self._metadata: list[pq.FileMetaData] = []
        self._last: tuple[Any, Any] = None, None
        super().__init__(paths)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": (None, None)}

    def _open(self, path: pathlib.Path) -> int:
        try:
            file = pq.ParquetFile(_open_for_arrow(path))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{path} is not a readable Parquet file: {error}"
            ) from None
        if not self._metadata:
            self.schema = file.schema_arrow
        self._metadata.append(file.metadata)
        return int(file.metadata.num_rows)

    def _read(self, number: int, names: Sequence[str]) -> pa.Table:
        path = self.paths[number]
        try:
            table = pq.ParquetFile(_open_for_arrow(path)).read(columns=list(names))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        return _select(table, names, path)

    def _cell(self, number: int, row: int, name: str) -> Any:
        metadata = self._metadata[number]
        group = 0
        while row >= metadata.row_group(group).num_rows:
            row -= metadata.row_group(group).num_rows
            group += 1
        wanted = number, group, name
        last, column = self._last
        if last != wanted:
            path = _open_for_arrow(self.paths[number])
            file = pq.ParquetFile(path, metadata=metadata)
            column = file.read_row_group(group, columns=[name])[name]
            self._last = wanted, column
        return column[row].as_py()


class SavedDataset(ArrowFiles):
    """A data set that Hugging Face's `Dataset.save_to_disk` wrote, mapped from disk.

    Args:
      folder: folder with `state.json`; on a store, it is copied to the user's cache.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged.
    """

    def __init__(self, folder: pathlib.Path):
        self._tables: list[pa.Table] = []
        folder = local_copy(folder)
        state = read_json(folder / "state.json")
        try:
            paths = [folder / str(f["filename"]) for f in state["_data_files"]]
        except (KeyError, TypeError):
            raise ValueError(
                f"{folder / 'state.json'} does not list the data set's files"
            ) from None
        super().__init__(paths)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": []}  # pickling would copy all images

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for path in self.paths:
            self._open(path)

    def _open(self, path: pathlib.Path) -> int:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        try:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_stream(file).read_all()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a readable Arrow file: {error}") from None
        if not self._tables:
            self.schema = table.schema
        self._tables.append(table)
        return len(table)

    def _read(self, number: int, names: Sequence[str]) -> pa.Table:
        return _select(self._tables[number], names, self.paths[number])

    def _cell(self, number: int, row: int, name: str) -> Any:
        return self._tables[number][name][row].as_py()


def _open_for_arrow(path: pathlib.Path) -> Any:
    """Return what Arrow reads a file from: of one on a store, only the parts needed."""
    return path.open("rb") if is_remote(path) else path


def _select(table: pa.Table, names: Sequence[str], path: pathlib.Path) -> pa.Table:
    """Select columns of a table.

    Raises:
      ValueError: a column is missing.
    """
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}, which other files have")
    return table.select(list(names)).replace_schema_metadata()
