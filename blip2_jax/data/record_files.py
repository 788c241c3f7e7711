"""ArrayRecord files with random access, of which the last used stay open."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from blip2_jax.parallel.files import FileFormatError
from blip2_jax.parallel.paths import AnyPath, as_path, is_remote

# Every record is a chunk of its own with its own checksum, so that reading one record
# reads nothing else. Equal records give equal bytes.
WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access
_MAX_OPEN = 64  # files of one reader; systems allow 1024 or more to a process


class RecordFiles:
    """Readers of ArrayRecord files, opened on first use; can be pickled and shared.

    The checksums of the format find changed bytes, so that a damaged record is an error
    and never other data.
    """

    def __init__(self) -> None:
        """Make a reader without open files."""
        self._open: collections.OrderedDict[str, ArrayRecordReader] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # every process opens the files

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def read(self, path: pathlib.Path, index: int, count: int) -> bytes:
        """Read a record.

        Args:
          path: local path of the file.
          index: index of the record.
          count: number of records that the file must hold.

        Raises:
          FileFormatError: the file is damaged or truncated.
          OSError: it cannot be read.
        """
        with self._lock:
            reader = self._reader(path, count)
            try:
                return bytes(reader.read([index])[0])
            except (RuntimeError, ValueError, IndexError) as error:
                raise FileFormatError(
                    f"{path} is damaged at record {index}: {error}"
                ) from None

    def _reader(self, path: pathlib.Path, count: int) -> ArrayRecordReader:
        """Return the reader of a file; the one that was not used longest is closed."""
        name = str(path)
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        reader, found = _open(path)
        if found != count:
            raise FileFormatError(
                f"{path} holds {found} records, not {count}: it is truncated or damaged"
            )
        self._open[name] = reader
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        return reader


def count_records(path: pathlib.Path) -> int:
    """Return the number of records of a local ArrayRecord file; raises as `_open`."""
    reader, count = _open(path)
    reader.close()
    return count


def _open(path: pathlib.Path) -> tuple[ArrayRecordReader, int]:
    """Open a local ArrayRecord file and count its records.

    Raises:
      FileFormatError: the file is none, or is truncated.
      FileNotFoundError: it does not exist or is no regular file.
    """
    if not path.is_file():  # a named pipe would block for ever
        raise FileNotFoundError(f"{path} does not exist or is no regular file")
    try:
        reader = ArrayRecordReader(str(path), _READER_OPTIONS)
        if not reader.ok():  # opening a truncated file does not raise
            raise ValueError("the end is missing or damaged")
        return reader, int(reader.num_records())
    except (RuntimeError, ValueError) as error:
        raise FileFormatError(
            f"{path} is not a whole ArrayRecord file: {error}"
        ) from None


def write_records(path: AnyPath, records: Iterable[bytes]) -> tuple[int, str]:
    """Write an ArrayRecord file; one on an object store is written locally first.

    Args:
      path: path of the file.
      records: the records.

    Returns:
      Size and SHA-256 of the file.

    Raises:
      OSError: the file cannot be written, e.g. because the disk is full.
    """
    path = as_path(path)
    if not is_remote(path):
        _write(path, records)
        return _size_and_digest(path)
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder) / "records"
        _write(local, records)
        with local.open("rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 2**22)
        return _size_and_digest(local)


def _size_and_digest(path: pathlib.Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: pathlib.Path, records: Iterable[bytes]) -> None:
    with _os_errors(path):
        writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    try:
        for record in records:
            with _os_errors(path):
                writer.write(record)
    finally:
        with _os_errors(path):
            writer.close()


@contextlib.contextmanager
def _os_errors(path: pathlib.Path) -> Iterator[None]:
    """Raise the writer's errors, which are all of the operating system, as OSError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written: {error}") from None
