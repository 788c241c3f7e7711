"""Index of a tar: where each record's image and texts are, and what is left out.

The index is stored in a cache directory by the tar's size and modification time. A
stored index that is damaged or does not fit the tar is made again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import tarfile
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Int64, Shaped
from numpy import ndarray as Array

from blip2_jax.parallel.user_cache import user_cache_directory

IMAGE, TEXT, JSON = range(3)
_COLUMNS = {
    "jpg": IMAGE,
    "jpeg": IMAGE,
    "png": IMAGE,
    "webp": IMAGE,
    "txt": TEXT,
    "json": JSON,
}
_VERSION = 2
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_COMPRESSED |= {b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The records of a tar.

    Attributes:
      keys: the records' names, as bytes.
      spans: offset and size of each record's image, text and JSON; size -1: absent.
      left_out: number of members that belong to no record, by reason.
    """

    keys: Shaped[Array, " records"]
    spans: Int64[Array, "records 3 2"]
    left_out: Mapping[str, int]


def default_cache() -> pathlib.Path:
    """Return the cache directory of the user."""
    return user_cache_directory() / "tars"


def tar_index(path: pathlib.Path, directory: pathlib.Path) -> TarIndex:
    """Return the index of a tar, from a cache directory if it is stored there.

    Raises:
      ValueError: the file is not a tar, is damaged or compressed.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    state = path.stat()
    identity = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {_VERSION}"
    digest = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:24]
    cached = directory / f"{path.stem}-{digest}.npz"
    index = _read_index(cached, state.st_size)
    if index is None:
        index = _scan(path)
        with contextlib.suppress(OSError):  # the cache may be read-only
            _write_index(cached, index)
    return index


def _read_index(path: pathlib.Path, tar_size: int) -> TarIndex | None:
    """Read a stored index; None if there is none, or if it is damaged."""
    try:
        with np.load(path) as arrays:
            keys, spans = arrays["keys"], arrays["spans"]
            counts = zip(arrays["reasons"], arrays["counts"], strict=True)
            left_out = {str(reason): int(count) for reason, count in counts}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = (
        keys.dtype.kind == "S"
        and spans.dtype == np.int64
        and spans.shape == (len(keys), 3, 2)
        and (spans.sum(axis=2) <= tar_size).all()
    )
    return TarIndex(keys, spans, left_out) if fits else None


def _write_index(path: pathlib.Path, index: TarIndex) -> None:
    """Write an index atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
    np.savez(
        temporary,
        keys=index.keys,
        spans=index.spans,
        reasons=np.array(list(index.left_out), dtype=np.str_),
        counts=np.array(list(index.left_out.values()), dtype=np.int64),
    )
    temporary.replace(path)


def _scan(path: pathlib.Path) -> TarIndex:
    """Make the index of a tar.

    Raises:
      ValueError: see `tar_index`.
    """
    with path.open("rb") as file:
        head = file.read(8)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise ValueError(
                f"{path} is compressed ({name}), so that its members cannot be read in "
                "any order; unpack it to a plain tar first"
            )
    spans_of_key: dict[bytes, Array] = {}
    left_out: collections.Counter[str] = collections.Counter()
    try:
        for member in _members(path, left_out):
            if member.isdir():
                continue
            key, column = _key_and_column(member)
            if reason := _unusable(member, column):
                left_out[reason] += 1
                continue
            spans = spans_of_key.setdefault(key, np.full((3, 2), -1, np.int64))
            if spans[column, 1] >= 0:
                left_out["repeated member"] += 1  # the last one counts, as in tar
            spans[column] = member.offset_data, member.size
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path} is not a readable tar: {error}") from None
    keys = np.array(list(spans_of_key), dtype=np.bytes_)
    spans = np.array(list(spans_of_key.values()), np.int64).reshape(-1, 3, 2)
    return TarIndex(keys, spans, dict(left_out))


def _members(
    path: pathlib.Path, left_out: collections.Counter[str]
) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar; count the bytes after its end mark.

    `tarfile` takes a damaged header for the end of the tar.
    """
    with tarfile.open(path, "r:", encoding="utf-8") as tar:
        yield from tar
        end = tar.offset
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged header at byte {end}")
        while block := file.read(1 << 20):
            if block := block.strip(b"\0"):
                left_out["bytes after the end mark (joined tars?)"] += len(block)


def _key_and_column(member: tarfile.TarInfo) -> tuple[bytes, int]:
    """Return the record that a member belongs to, and its column; -1: none."""
    folder, _, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    key = (f"{folder}/{stem}" if folder else stem).removeprefix("./")
    # Names in other encodings than UTF-8 keep their bytes.
    encoded = key.encode("utf-8", errors="surrogateescape")
    return encoded, _COLUMNS.get(suffix.lower(), -1)


def _unusable(member: tarfile.TarInfo, column: int) -> str:
    """Say why a member is left out; "" if it is not."""
    if member.issym() or member.islnk():
        return "link"
    if not member.isreg():
        return "device or pipe"
    if member.issparse():
        return "sparse file"
    return "" if column >= 0 else "other suffix"
