"""ArrayRecord files as `blip2-jax prepare` writes them: one image and its texts each.

The format of a record: the length of its JSON (4 bytes, little-endian), the JSON of
`record_json` in UTF-8, then the bytes of the image file.
"""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.images import decode_image
from blip2_jax.data.record_files import RecordFiles, count_records
from blip2_jax.data.sources.base import BrokenSample, Record, Source
from blip2_jax.data.sources.checked_rows import describe_problem, take_text
from blip2_jax.data.sources.content_digest import Digests, file_digests
from blip2_jax.data.sources.files import expand_paths
from blip2_jax.data.sources.record_json import record_from_json, record_to_json
from blip2_jax.parallel.files import FileFormatError, parse_json
from blip2_jax.parallel.paths import is_remote

SUFFIX = ".arrayrecord"

_LENGTH = struct.Struct("<I")
_OPENING_THREADS = 16
_RECORDS_TRIED = 20  # of which one must be readable


def pack_record(record: Record, image: bytes) -> bytes:
    """Return the bytes of a record with its encoded image."""
    texts = json.dumps(record_to_json(record), ensure_ascii=False).encode()
    return _LENGTH.pack(len(texts)) + texts + image


def unpack_record(data: bytes) -> tuple[Any, bytes]:
    """Return the JSON content and the encoded image of a record's bytes.

    Raises:
      FileFormatError: the bytes are not those of `pack_record`.
    """
    if len(data) < _LENGTH.size:
        raise FileFormatError(f"the record has {len(data)} bytes")
    start = _LENGTH.size
    end = start + _LENGTH.unpack_from(data)[0]
    if end > len(data):
        raise FileFormatError(
            f"the record has {len(data)} bytes, its texts should end at {end}"
        )
    return parse_json(data[start:end], "the record's JSON"), data[end:]


class ArrayRecordSource(Source):
    """Records of ArrayRecord files, in the order of the sorted paths.

    Args:
      paths: path or glob pattern of files that `prepare` wrote, or a list of these.

    Raises:
      FileNotFoundError: a pattern matches no file.
      ValueError: a file is no ArrayRecord file, holds records of another kind, or is
        not on a local disk.
    """

    def __init__(self, paths: str | Sequence[str]):
        patterns = [paths] if isinstance(paths, str) else list(paths)
        self.name = "array_record:" + ",".join(patterns)
        self._paths = expand_paths(patterns, "ArrayRecord file")
        for path in self._paths:
            _check_local(path)
        with concurrent.futures.ThreadPoolExecutor(_OPENING_THREADS) as pool:
            self._counts = list(pool.map(count_records, self._paths))
        self._starts = np.cumsum([0, *self._counts])
        self._files = RecordFiles()
        self._last = -1, b""  # texts and image of a record are read one after another
        self._check_kind()

    def _check_kind(self) -> None:
        """Check that one of the first records is one of `prepare`."""
        problems = []
        for index in range(min(len(self), _RECORDS_TRIED)):
            try:
                self.record(index)
            except BrokenSample as error:
                problems.append(error.detail)
            else:
                return
        if problems:
            raise ValueError(
                f"{self._paths[0]} holds no records of `blip2-jax prepare`: "
                f"{problems[0]}"
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": (-1, b"")}

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        try:
            content, _ = unpack_record(self.read_bytes(index))
            key = take_text(content["key"], "key")
            return record_from_json(content, key, index)
        except BrokenSample:
            raise
        except Exception as error:
            reason = describe_problem(error)
            raise BrokenSample("malformed record", self._place(index), reason) from None

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the image of a record; see `Source`."""
        return decode_image(self.encoded_image(index), self._place(index), at_least)

    def encoded_image(self, index: int) -> bytes:
        """Read the image of a record; see `Source`."""
        try:
            return unpack_record(self.read_bytes(index))[1]
        except FileFormatError as error:
            raise BrokenSample(
                "malformed record", self._place(index), str(error)
            ) from None

    def content(self) -> Digests:
        """Return digests of the files and of a sample of the texts; see `Source`."""
        return super().content() | file_digests(self._paths, "file ")

    def read_bytes(self, index: int) -> bytes:
        """Read the bytes of a record."""
        last, data = self._last
        if last == index:
            return data
        number, row = self._locate(index)
        try:
            data = self._files.read(self._paths[number], row, self._counts[number])
        except (FileFormatError, OSError) as error:
            place, reason = self._place(index), str(error).partition("\n")[0]
            raise BrokenSample("unreadable record", place, reason) from None
        self._last = index, data
        return data

    def _place(self, index: int) -> str:
        """Return file and record, counted from 1, for error reports."""
        number, row = self._locate(index)
        return f"{self._paths[number].name} record {row + 1}"

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the number of the record's file and its index there."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])


def _check_local(path: pathlib.Path) -> None:
    """Check that a path is on a local disk, where the library can read it.

    Raises:
      ValueError: it is on an object store.
    """
    if is_remote(path):
        raise ValueError(
            f"{path}: ArrayRecord files are read from local disks only; copy it to "
            "one, or use tars (`blip2-jax prepare --format tars`)"
        )
