"""The index of a set of tars: one directory of files that are opened, not loaded.

`records.npy` holds a row of fixed size per record (`tar_index.RECORD`), in the order of
the tars, `keys.npy` the bytes of all keys, and `header.json` the tars, the numbers of
their records and a digest. The files can be mapped (`numpy.load(path, "r")`), but are
read with `pread`: a page that is touched maps its neighbours too, so that a process
which maps the files soon counts all of their gigabytes as its memory. Either way, the
processes of a machine share one copy in the cache of the operating system.
"""

from __future__ import annotations

import collections
import hashlib
import io
import os
import pathlib
import struct
import weakref
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from blip2_jax.data.sources.tar_index import ABSENT, RECORD, TarIndex
from blip2_jax.data.sources.tar_members import BLOCK
from blip2_jax.parallel.files import FileFormatError, parse_json, read_json

VERSION = 3
HEADER, RECORDS, KEYS = "header.json", "records.npy", "keys.npy"
# More bytes are checked by their number alone, because reading them takes long.
_CHECKED_BYTES, _READ_BYTES = 2**26, 2**20
_RECORD = struct.Struct("<3I3IQH")
assert _RECORD.size == RECORD.itemsize

Span = tuple[int, int]  # offset and size in a tar


class TarState(NamedTuple):
    """A tar and what changes when it is written: see `paths.file_state`."""

    path: str
    size: int
    mark: str


class DamagedIndex(ValueError):
    """The index is missing, damaged or of another version."""


class TarSetIndex:
    """The opened index of a set of tars; pickled as the name of its directory.

    Attributes:
      tars: the tars.
      starts: number of records before each tar, and of all.
      left_out: number of members that belong to no record, by reason.
      digest: of all keys and spans, in their order.

    Args:
      directory: from `write_index`.
      check: read small files whole, to find damage in them.

    Raises:
      DamagedIndex: see there.
    """

    def __init__(self, directory: pathlib.Path, check: bool = True):
        self.directory = directory
        header = _read_header(directory / HEADER)
        try:
            self.tars = [TarState(*tar) for tar in header["tars"]]
            self.starts = np.cumsum([0, *header["records"]])
            self.left_out_by_tar = header["left_out"]
            self.digest: str = header["digest"]
            key_bytes = int(header["key_bytes"])
            checksums = [int(header["checksums"][name]) for name in (RECORDS, KEYS)]
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedIndex(f"{directory}: {error}") from None
        if not len(self.tars) == len(self.left_out_by_tar) == len(self.starts) - 1:
            raise DamagedIndex(f"{directory}: the numbers of tars differ")
        self._records = Column(directory / RECORDS, RECORD, int(self.starts[-1]))
        self._keys = Column(directory / KEYS, np.dtype(np.uint8), key_bytes)
        if check:
            self._records.check(checksums[0])
            self._keys.check(checksums[1])

    def __reduce__(self) -> tuple[Any, ...]:
        return TarSetIndex, (self.directory, False)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def left_out(self) -> dict[str, int]:
        """Number of members that belong to no record, by reason."""
        total: collections.Counter[str] = collections.Counter()
        for counts in self.left_out_by_tar:
            total.update(counts)
        return dict(total)

    def tar_of(self, index: int) -> int:
        """Return the number of a record's tar."""
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def key(self, index: int) -> bytes:
        """Return the key of a record."""
        start, size = self._row(index)[6:]
        return self._keys.read(start, size)

    def span(self, index: int, column: int) -> Span | None:
        """Return where a record's image, text or JSON is; None if it has none."""
        row = self._row(index)
        block, size = row[column], row[3 + column]
        return None if size == ABSENT else (block * BLOCK, size)

    def keys(self, tar: int) -> Iterator[bytes]:
        """Yield the keys of the records of one of the tars."""
        index = self.tar_index(tar)
        content = index.keys.tobytes()
        starts, sizes = index.records["key_start"], index.records["key_size"]
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            yield content[start : start + size]

    def tar_index(self, tar: int) -> TarIndex:
        """Return the index of one of the tars."""
        first, last = (int(n) for n in self.starts[tar : tar + 2])
        records = np.frombuffer(self._records.read(first, last - first), RECORD).copy()
        start = size = 0
        if len(records):
            start = int(records["key_start"][0])
            size = int(records["key_start"][-1]) + int(records["key_size"][-1]) - start
            records["key_start"] -= np.uint64(start)
        keys = np.frombuffer(self._keys.read(start, size), np.uint8)
        return TarIndex(records, keys, self.left_out_by_tar[tar])

    def _row(self, index: int) -> tuple[int, ...]:
        """Read the row of a record."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return _RECORD.unpack(self._records.read(index, 1))


class Column:
    """A one-dimensional `.npy` file that is read in parts, by any number of threads.

    Raises:
      DamagedIndex: the file has another dtype or size.
    """

    def __init__(self, path: pathlib.Path, dtype: np.dtype, count: int):
        self._path, self._item, self._count = path, dtype.itemsize, count
        try:
            file = path.open("rb")
        except OSError as error:
            raise DamagedIndex(f"{path}: {error}") from None
        self._file = file
        weakref.finalize(self, file.close)
        head = npy_head(dtype, count)
        self._start = len(head)
        expected = len(head) + count * dtype.itemsize
        if file.read(len(head)) != head or os.fstat(file.fileno()).st_size != expected:
            raise DamagedIndex(f"{path} is damaged")

    def read(self, first: int, count: int) -> bytes:
        """Read elements.

        Raises:
          OSError: they cannot be read.
        """
        size = count * self._item
        data = os.pread(self._file.fileno(), size, self._start + first * self._item)
        if len(data) < size:
            raise OSError(f"{self._path} was cut")
        return data

    def check(self, checksum: int) -> None:
        """Compare the checksum of the elements, unless there are very many.

        Raises:
          DamagedIndex: it differs.
        """
        if self._count * self._item > _CHECKED_BYTES:
            return
        total, step = 0, max(1, _READ_BYTES // self._item)
        for first in range(0, self._count, step):
            part = self.read(first, min(step, self._count - first))
            total = zlib.crc32(part, total)
        if total != checksum:
            raise DamagedIndex(f"{self._path} is damaged")


def npy_head(dtype: np.dtype, count: int) -> bytes:
    """Return the beginning of a one-dimensional `.npy` file."""
    head = io.BytesIO()
    description = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        head, {"descr": description, "fortran_order": False, "shape": (count,)}
    )
    return head.getvalue()


def _read_header(path: pathlib.Path) -> dict[str, Any]:
    """Read the header, which carries its own checksum.

    Raises:
      DamagedIndex: there is none, or it is damaged.
    """
    try:
        header = read_json(path)
        content = header["content"]
        if header["sha256"] != text_digest(content):
            raise DamagedIndex(f"{path} is damaged")
        fields = parse_json(content, path)
    except (OSError, FileFormatError, KeyError, TypeError) as error:
        raise DamagedIndex(f"{path}: {error}") from None
    if fields.get("version") != VERSION:
        raise DamagedIndex(f"{path} has version {fields.get('version')}")
    return fields


def text_digest(text: str) -> str:
    """Return the digest that a header carries of its content."""
    return hashlib.sha256(text.encode()).hexdigest()
