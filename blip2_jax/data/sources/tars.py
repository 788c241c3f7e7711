"""img2dataset and webdataset tars, indexed once and then read at random.

Members that share a name up to the first dot are one record: an image (jpg, jpeg,
png, webp), its captions as `.json` ("captions" or "caption", or a plain list) or as
`.txt`. The index of a tar is kept in a cache directory and is valid for the tar's
size and time of change.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import pathlib
import tarfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.images import decode_image
from blip2_jax.data.sources.base import BrokenSample, Record, Source

_COLUMNS = {"jpg": 0, "jpeg": 0, "png": 0, "webp": 0, "txt": 1, "json": 2}
_IMAGE, _TEXT, _JSON = range(3)
_INDEX_VERSION = 1


class TarsSource(Source):
    """Records of tars, in the order of the sorted paths.

    A record's key is SHARD/KEY: the tar's name without suffix, the member's name.

    Args:
      paths: tars or glob patterns, one or several.
      index_directory: where indices are kept; by default in the user's cache.

    Raises:
      FileNotFoundError: a pattern matches nothing.
      ValueError: a file is no tar.
    """

    def __init__(self, paths: str | Sequence[str], index_directory: str = ""):
        patterns = [paths] if isinstance(paths, str) else list(paths)
        self.name = "tars:" + ",".join(patterns)
        self._paths = _expand(patterns)
        directory = pathlib.Path(index_directory or _default_cache())
        indices = [_index(path, directory) for path in self._paths]
        self._starts = np.cumsum([0, *(len(keys) for keys, _ in indices)])
        self._keys = np.concatenate([keys for keys, _ in indices])
        # Offset and size of each record's image, text and JSON; size -1: absent.
        self._spans = np.concatenate([spans for _, spans in indices])

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self) -> list[str]:
        return [self._key(index) for index in range(len(self))]

    def record(self, index: int) -> Record:
        captions, original = self._texts(index)
        return Record(self._key(index), index, captions, original_id=original)

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        data = self._read(index, _IMAGE)
        if data is None:
            raise BrokenSample("missing image", self._key(index))
        return decode_image(data, self._key(index), at_least)

    def _texts(self, index: int) -> tuple[tuple[str, ...], int | str | None]:
        """The record's captions and, where its JSON has one, the image's own id."""
        captions: list[str] = []
        original = None
        if (data := self._read(index, _JSON)) is not None:
            try:
                captions, original = _json_captions(json.loads(data))
            except (ValueError, TypeError, AttributeError):
                raise BrokenSample("broken json", self._key(index)) from None
        if not captions and (data := self._read(index, _TEXT)) is not None:
            captions = [data.decode("utf-8", errors="replace")]
        return tuple(captions), original

    def _key(self, index: int) -> str:
        return f"{self._shard(index).stem}/{self._keys[index].decode()}"

    def _shard(self, index: int) -> pathlib.Path:
        return self._paths[int(np.searchsorted(self._starts, index, side="right")) - 1]

    def _read(self, index: int, column: int) -> bytes | None:
        offset, size = (int(n) for n in self._spans[index, column])
        if size < 0:
            return None
        try:
            with open(self._shard(index), "rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise BrokenSample("unreadable tar", self._key(index), str(error)) from None


def _json_captions(content: object) -> tuple[list[str], int | str | None]:
    if isinstance(content, list):
        return [str(caption) for caption in content], None
    if not isinstance(content, dict):
        raise TypeError("neither an object nor a list")
    captions = content.get("captions") or content.get("caption") or []
    captions = [captions] if isinstance(captions, str) else list(captions)
    return captions, content.get("image_id")


def _expand(patterns: Sequence[str]) -> list[pathlib.Path]:
    paths: set[pathlib.Path] = set()
    for pattern in patterns:
        found = glob.glob(pattern)
        if not found:
            raise FileNotFoundError(f"no tar matches {pattern!r}")
        paths.update(pathlib.Path(path) for path in found)
    return sorted(paths)


def _default_cache() -> pathlib.Path:
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "blip2_jax" / "tars"


def _index(path: pathlib.Path, directory: pathlib.Path) -> tuple[Array, Array]:
    """Keys [N] bytes and spans [N, 3, 2] of a tar, read from the cache or made."""
    state = path.stat()
    identity = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {_INDEX_VERSION}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:24]
    cached = directory / f"{path.stem}-{digest}.npz"
    if cached.is_file():
        with np.load(cached) as arrays:
            return arrays["keys"], arrays["spans"]
    keys, spans = _scan(path)
    with contextlib.suppress(OSError):  # a read-only home: scanned again next time
        _write_index(cached, keys, spans)
    return keys, spans


def _scan(path: pathlib.Path) -> tuple[Array, Array]:
    found: dict[str, Array] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                column = _COLUMNS.get(suffix.lower())
                if member.isfile() and column is not None:
                    key = f"{folder}/{stem}" if folder else stem
                    key = key.removeprefix("./")
                    spans = found.setdefault(key, np.full((3, 2), -1, np.int64))
                    spans[column] = member.offset_data, member.size
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no readable tar: {error}") from None
    keys = np.array([key.encode() for key in found], dtype=np.bytes_)
    return keys, np.stack(list(found.values())) if found else np.zeros((0, 3, 2), int)


def _write_index(path: pathlib.Path, keys: Array, spans: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
    np.savez(temporary, keys=keys, spans=spans)
    temporary.replace(path)
