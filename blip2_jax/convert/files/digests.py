"""Digests of arrays in memory, and of those in safetensors files.

Those of a file are computed once for each state of the file. The result is kept in the
user's cache directory by path, size, times and inode, so that weights of many gigabytes
are not read again at every start. Programs cannot set the time of the last status
change (`ctime`), so that a replaced file is noticed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib

import numpy as np

from blip2_jax.parallel.files import FileFormatError, read_json, write_atomically

_CHUNK_BYTES = 2**22
_THREADS = 8


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's values in row-major, little-endian bytes."""
    array = np.atleast_1d(np.ascontiguousarray(array))
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return hashlib.sha256(array.view(np.uint8).data).hexdigest()


def stored_digests(path: pathlib.Path) -> dict[str, str]:
    """Return the SHA-256 of the bytes of every array in a safetensors file.

    It equals `digest` of the array.

    Raises:
      OSError: the file cannot be read.
      FileFormatError: the file is not in safetensors format.
    """
    cached = _cache_file(path)
    with contextlib.suppress(OSError, FileFormatError):
        content = read_json(cached)
        if isinstance(content, dict):
            return content
    digests = _compute(path)
    if _cache_file(path) == cached:  # the file did not change meanwhile
        with contextlib.suppress(OSError):  # the cache may be read-only
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(cached, json.dumps(digests) + "\n")
    return digests


def _cache_file(path: pathlib.Path) -> pathlib.Path:
    """Return the cache file of the present state of a file."""
    state = path.stat()
    fields = state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
    identity = hashlib.sha256(f"{path.resolve()} {fields}".encode()).hexdigest()[:24]
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "blip2_jax" / "digests" / f"{identity}.json"


def _compute(path: pathlib.Path) -> dict[str, str]:
    """Hash the arrays of a file, several at a time."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, path.stat().st_size))
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        spans = {name: entry["data_offsets"] for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} is not in safetensors format: {error}") from None
    start = 8 + length
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(
            lambda span: _hash_span(path, start + span[0], span[1] - span[0]),
            spans.values(),
        )
        return dict(zip(spans, results, strict=True))


def _hash_span(path: pathlib.Path, offset: int, length: int) -> str:
    """Hash a part of a file in pieces, which limits the memory."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while length and (piece := file.read(min(length, _CHUNK_BYTES))):
            sha.update(piece)
            length -= len(piece)
    return sha.hexdigest()
