"""img2dataset and webdataset tars with random access through an index.

Members that share a name up to the first dot form a record: an image (jpg, jpeg, png,
webp) and its captions as `.json` ("captions" or "caption", or a plain list) or `.txt`.
The index of a tar is stored in a cache directory, by the tar's size and modification
time.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import pathlib
import tarfile
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.images import decode_image
from blip2_jax.data.sources.base import BrokenSample, Record, Source
from blip2_jax.data.sources.checked_rows import (
    describe_problem,
    take_id,
    take_texts,
)
from blip2_jax.parallel.files import parse_json

_COLUMNS = {"jpg": 0, "jpeg": 0, "png": 0, "webp": 0, "txt": 1, "json": 2}
_IMAGE, _TEXT, _JSON = range(3)
_INDEX_VERSION = 1


class TarsSource(Source):
    """Records of tars, in the order of the sorted paths.

    A record's key is SHARD/KEY: the tar's name without suffix and the member's name.

    Args:
      paths: path or glob pattern of tars, or a list of these.
      index_directory: cache directory of the indices; "": in the user's cache.

    Raises:
      FileNotFoundError: a pattern matches no file.
      ValueError: a file is not a tar.
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
        """List the keys of all records."""
        return [self._key(index) for index in range(len(self))]

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        captions, original = self._texts(index)
        return Record(self._key(index), index, captions, original_id=original)

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the image of a record; see `Source`."""
        data = self._read(index, _IMAGE)
        if data is None:
            raise BrokenSample("missing image", self._key(index))
        return decode_image(data, self._key(index), at_least)

    def _texts(self, index: int) -> tuple[tuple[str, ...], int | str | None]:
        """Read a record's captions and, if its JSON has one, the image's own id."""
        captions: list[str] = []
        original = None
        if (data := self._read(index, _JSON)) is not None:
            try:
                captions, original = _json_captions(parse_json(data, "the JSON"))
            except Exception as error:
                reason = describe_problem(error)
                raise BrokenSample("broken json", self._key(index), reason) from None
        if not captions and (data := self._read(index, _TEXT)) is not None:
            captions = [data.decode("utf-8", errors="replace")]
        return tuple(captions), original

    def _key(self, index: int) -> str:
        """Return a record's key."""
        return f"{self._shard(index).stem}/{self._keys[index].decode()}"

    def _shard(self, index: int) -> pathlib.Path:
        """Return the path of a record's tar."""
        return self._paths[int(np.searchsorted(self._starts, index, side="right")) - 1]

    def _read(self, index: int, column: int) -> bytes | None:
        """Read a record's image, text or JSON; None if it is absent."""
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
    """Return the captions and the image id of a record's JSON."""
    if isinstance(content, list):
        return list(take_texts(content, "captions")), None
    if not isinstance(content, dict):
        raise ValueError("the JSON is neither an object nor a list")
    captions = content.get("captions") or content.get("caption") or []
    original = take_id(content.get("image_id"), "image_id")
    return list(take_texts(captions, "captions")), original


def _expand(patterns: Sequence[str]) -> list[pathlib.Path]:
    """Return the sorted paths that match the patterns."""
    paths: set[pathlib.Path] = set()
    for pattern in patterns:
        matches = glob.glob(pattern)
        if not matches:
            raise FileNotFoundError(f"no tar matches {pattern!r}")
        paths.update(pathlib.Path(path) for path in matches)
    return sorted(paths)


def _default_cache() -> pathlib.Path:
    """Return the cache directory of the user."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "blip2_jax" / "tars"


def _index(path: pathlib.Path, directory: pathlib.Path) -> tuple[Array, Array]:
    """Return keys [records] and spans [records, 3, 2] of a tar, cached if possible."""
    state = path.stat()
    identity = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {_INDEX_VERSION}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:24]
    cached = directory / f"{path.stem}-{digest}.npz"
    if cached.is_file():
        with np.load(cached) as arrays:
            return arrays["keys"], arrays["spans"]
    keys, spans = _scan(path)
    with contextlib.suppress(OSError):  # the cache may be read-only
        _write_index(cached, keys, spans)
    return keys, spans


def _scan(path: pathlib.Path) -> tuple[Array, Array]:
    """Index a tar; see `_index`."""
    spans_of_key: dict[str, Array] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                column = _COLUMNS.get(suffix.lower())
                if member.isfile() and column is not None:
                    key = f"{folder}/{stem}" if folder else stem
                    key = key.removeprefix("./")
                    spans = spans_of_key.setdefault(key, np.full((3, 2), -1, np.int64))
                    spans[column] = member.offset_data, member.size
    except tarfile.TarError as error:
        raise ValueError(f"{path} is not a readable tar: {error}") from None
    keys = np.array([key.encode() for key in spans_of_key], dtype=np.bytes_)
    if not spans_of_key:
        return keys, np.zeros((0, 3, 2), int)
    return keys, np.stack(list(spans_of_key.values()))


def _write_index(path: pathlib.Path, keys: Array, spans: Array) -> None:
    """Write an index atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
    np.savez(temporary, keys=keys, spans=spans)
    temporary.replace(path)
