"""Index of one tar: where each record's image and texts are, and what is left out.

Members that share a name up to the first dot form a record.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Shaped, UInt8
from numpy import ndarray as Array

from blip2_jax.data.sources.read_ahead import ReadAhead, ReadAt
from blip2_jax.data.sources.tar_members import (
    BLOCK,
    DIRECTORY,
    LINKS,
    REGULAR,
    SPARSE,
    DamagedTar,
    Member,
    read_members,
)
from blip2_jax.parallel.paths import file_state, is_remote, read_range

IMAGE, TEXT, JSON = range(3)
_COLUMNS = {
    b"jpg": IMAGE,
    b"jpeg": IMAGE,
    b"png": IMAGE,
    b"webp": IMAGE,
    b"txt": TEXT,
    b"json": JSON,
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_COMPRESSED |= {b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}

# A record: for its image, text and JSON the offset in blocks of the tar, and the size
# in bytes (`ABSENT` without one); the place of its key among the bytes of all keys.
RECORD = np.dtype(
    [("block", "<u4", 3), ("size", "<u4", 3), ("key_start", "<u8"), ("key_size", "<u2")]
)
ABSENT = 2**32 - 1
_MAX_BLOCKS = 2**32

# Sizes of the smallest and the largest block that is read. Headers of local tars are
# read alone where images lie between them. A request to a store takes as long as the
# transfer of a few megabytes, so that gaps of 256 kB are read and not left out.
_LOCAL_BLOCKS = 2**12, 2**16
_REMOTE_BLOCKS = 2**18, 2**23
_TAIL = 2**20


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The records of a tar.

    Attributes:
      records: the records, in the order of their first members.
      keys: the bytes of all keys, one behind the other.
      left_out: number of members that belong to no record, by reason.
    """

    records: Shaped[Array, " records"]  # of `RECORD`
    keys: UInt8[Array, " bytes"]
    left_out: Mapping[str, int]


def scan_tar(path: pathlib.Path) -> TarIndex:
    """Make the index of a tar.

    Raises:
      ValueError: the file is not a tar, is damaged or compressed.
    """
    try:
        size = file_state(path)[0]
        with _open(path) as read:
            _check_uncompressed(read(0, 8), path)
            return _scan(
                read, size, _REMOTE_BLOCKS if is_remote(path) else _LOCAL_BLOCKS
            )
    except (DamagedTar, OSError) as error:
        raise ValueError(f"{path} is not a readable tar: {error}") from None


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[ReadAt]:
    """Open a tar for reading at any offset."""
    if is_remote(path):
        yield lambda offset, size: read_range(path, offset, size)
        return
    with path.open("rb", buffering=0) as file:

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        yield read


def _check_uncompressed(head: bytes, path: pathlib.Path) -> None:
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise ValueError(
                f"{path} is compressed ({name}), so that its members cannot be read in "
                "any order; unpack it to a plain tar first"
            )


def _scan(read: ReadAt, size: int, blocks: tuple[int, int]) -> TarIndex:
    """Group the members of a tar to records."""
    rows: dict[bytes, list[int]] = {}  # blocks and sizes of each key
    left_out: collections.Counter[str] = collections.Counter()
    for member in _members(read, size, blocks, left_out):
        if member.kind == DIRECTORY:
            continue
        key, column = _key_and_column(member.name)
        if reason := _unusable(member, column):
            left_out[reason] += 1
            continue
        row = rows.setdefault(key, [0, 0, 0, ABSENT, ABSENT, ABSENT])
        if row[3 + column] != ABSENT:
            left_out["repeated member"] += 1  # the last one counts, as in tar
        row[column], row[3 + column] = member.offset // BLOCK, member.size
    values = np.array(list(rows.values()), np.uint32).reshape(-1, 2, 3)
    records = np.zeros(len(rows), RECORD)
    records["block"], records["size"] = values[:, 0], values[:, 1]
    records["key_size"] = [len(key) for key in rows]
    ends = np.cumsum(records["key_size"], dtype=np.uint64)
    records["key_start"] = ends - records["key_size"]
    return TarIndex(records, np.frombuffer(b"".join(rows), np.uint8), dict(left_out))


def _members(
    read: ReadAt,
    size: int,
    blocks: tuple[int, int],
    left_out: collections.Counter[str],
) -> Iterator[Member]:
    """Yield the members of a tar; count the bytes after its end mark."""
    if size > _MAX_BLOCKS * BLOCK:
        raise DamagedTar(f"{size} bytes are more than 2 TiB")
    end = yield from read_members(ReadAhead(read, *blocks), size)
    for offset in range(end + BLOCK, size, _TAIL):
        if block := read(offset, _TAIL).strip(b"\0"):
            left_out["bytes after the end mark (joined tars?)"] += len(block)


def _key_and_column(path: bytes) -> tuple[bytes, int]:
    """Return the record that a member belongs to, and its column; -1: none."""
    folder, _, name = path.rpartition(b"/")
    stem, _, suffix = name.partition(b".")
    key = (folder + b"/" + stem if folder else stem).removeprefix(b"./")
    return key, _COLUMNS.get(suffix.lower(), -1)


def _unusable(member: Member, column: int) -> str:
    """Say why a member is left out; "" if it is not."""
    if member.kind in LINKS:
        return "link"
    if member.kind not in REGULAR and member.kind != SPARSE:
        return "device or pipe"
    if member.sparse:
        return "sparse file"
    if column >= 0 and member.size >= ABSENT:
        return "member of 4 GiB or more"
    return "" if column >= 0 else "other suffix"


def write_tar_index(path: pathlib.Path, index: TarIndex) -> None:
    """Write the index of a tar so that it is whole under its name."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.npz")
    left_out = np.frombuffer(json.dumps(dict(index.left_out)).encode(), np.uint8)
    np.savez(temporary, records=index.records, keys=index.keys, left_out=left_out)
    temporary.replace(path)


def read_tar_index(path: pathlib.Path) -> TarIndex | None:
    """Read the index of a tar; None if there is none, or if it is damaged."""
    try:
        with np.load(path) as arrays:
            records, keys = arrays["records"], arrays["keys"]
            left_out = json.loads(arrays["left_out"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = (
        records.dtype == RECORD
        and keys.dtype == np.uint8
        and records["key_size"].sum(dtype=np.int64) == len(keys)
    )
    return TarIndex(records, keys, left_out) if fits else None
