"""Writing of the index of a set of tars; `tar_set_index` reads it."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy import ndarray as Array

from blip2_jax.data.sources.tar_index import ABSENT, RECORD, TarIndex
from blip2_jax.data.sources.tar_members import BLOCK
from blip2_jax.data.sources.tar_set_index import (
    HEADER,
    KEYS,
    RECORDS,
    VERSION,
    Column,
    TarState,
    npy_head,
    text_digest,
)

_CHUNK = 2**24  # bytes that are digested at once


class _ColumnWriter:
    """Writes a `.npy` file part by part."""

    def __init__(self, path: pathlib.Path, dtype: np.dtype):
        self.path, self.dtype = path, dtype
        self.count = self.checksum = 0
        self._file = path.open("wb")
        # The head has room for any count.
        self._file.write(npy_head(dtype, 0))

    def append(self, array: Array) -> None:
        """Append elements."""
        data = array.tobytes()
        self._file.write(data)
        self.checksum = zlib.crc32(data, self.checksum)
        self.count += len(array)

    def close(self) -> Column:
        """Write everything to the disk; return the column for reading."""
        self._file.seek(0)
        self._file.write(npy_head(self.dtype, self.count))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return Column(self.path, self.dtype, self.count)


def write_index(
    directory: pathlib.Path, tars: Sequence[TarState], indices: Iterable[TarIndex]
) -> None:
    """Write the index of a set of tars.

    Args:
      directory: an empty directory; the caller renames it when it is whole.
      tars: the tars.
      indices: the index of each tar; one is held at a time.

    Raises:
      OSError: the files cannot be written.
    """
    records = _ColumnWriter(directory / RECORDS, RECORD)
    keys = _ColumnWriter(directory / KEYS, np.dtype(np.uint8))
    counts, left_out = [], []
    for index in indices:
        rows = index.records.copy()
        rows["key_start"] += np.uint64(keys.count)
        records.append(rows)
        keys.append(index.keys)
        counts.append(len(rows))
        left_out.append(dict(index.left_out))
    content = {
        "version": VERSION,
        "tars": tars,
        "records": counts,
        "left_out": left_out,
        "key_bytes": keys.count,
        "digest": _digest(records.close(), keys.close(), records.count),
        "checksums": {RECORDS: records.checksum, KEYS: keys.checksum},
    }
    text = json.dumps(content)
    with (directory / HEADER).open("w", encoding="utf-8") as file:
        json.dump({"sha256": text_digest(text), "content": text}, file)
        file.flush()
        os.fsync(file.fileno())


def _digest(records: Column, keys: Column, count: int) -> str:
    """Return the digest of all keys and spans, as runs have recorded it.

    It is the one of two arrays: keys [records], padded with zeros to the longest, and
    int64 offsets and sizes [records, 3, 2], -1 for what is absent.
    """

    def parts(step: int) -> Iterator[Array]:
        for first in range(0, count, step):
            data = records.read(first, min(step, count - first))
            yield np.frombuffer(data, RECORD)

    longest = (int(rows["key_size"].max()) for rows in parts(_CHUNK // RECORD.itemsize))
    width = max([1, *longest])
    sha = hashlib.sha256(b"%d:" % (count * width))
    for rows in parts(max(1, _CHUNK // width)):
        sizes = rows["key_size"]
        padded = np.zeros((len(rows), width), np.uint8)
        content = keys.read(int(rows["key_start"][0]), int(sizes.sum(dtype=np.int64)))
        padded[np.arange(width) < sizes[:, None]] = np.frombuffer(content, np.uint8)
        sha.update(padded.tobytes())
    sha.update(b"%d:" % (count * 3 * 2 * 8))
    for rows in parts(_CHUNK // (3 * 2 * 8)):
        sizes = rows["size"].astype(np.int64)
        spans = np.stack([rows["block"].astype(np.int64) * BLOCK, sizes], axis=-1)
        spans[sizes == ABSENT] = -1
        sha.update(spans.tobytes())
    return sha.hexdigest()
