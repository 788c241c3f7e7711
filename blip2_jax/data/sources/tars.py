"""img2dataset and webdataset tars with random access through an index.

Members that share a name up to the first dot form a record: an image (jpg, jpeg, png,
webp) and its captions as `.json` (an object of `record_json`, or a plain list) or
`.txt`.
Other members are left out and counted by reason (see `tar_index`).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.images import decode_image
from blip2_jax.data.sources.base import BrokenSample, Record, Source
from blip2_jax.data.sources.checked_rows import describe_problem, take_texts
from blip2_jax.data.sources.content_digest import (
    MAX_READ,
    Digests,
    evenly_spaced,
    file_digests,
    hash_parts,
)
from blip2_jax.data.sources.files import expand_paths
from blip2_jax.data.sources.record_json import record_from_json
from blip2_jax.data.sources.tar_index import IMAGE, JSON, TEXT
from blip2_jax.data.sources.tar_indexing import open_tar_set
from blip2_jax.parallel.files import decode_text, parse_json
from blip2_jax.parallel.paths import read_range

_REQUESTS = 32


class TarsSource(Source):
    """Records of tars, in the order of the sorted paths.

    A record's key is SHARD/KEY: the tar's name without suffix and the member's name.

    Args:
      paths: path or glob pattern of tars, or a list of these.
      index_directory: local directory of the index; "": in the user's cache.

    Raises:
      FileNotFoundError: a pattern matches no file.
      ValueError: a file is not a tar, or is a compressed one.
    """

    def __init__(self, paths: str | Sequence[str], index_directory: str = ""):
        patterns = [paths] if isinstance(paths, str) else list(paths)
        self.name = "tars:" + ",".join(patterns)
        self._paths = expand_paths(patterns, "tar")
        self._index = open_tar_set(patterns, self._paths, index_directory)
        self.left_out = self._index.left_out

    def __len__(self) -> int:
        return len(self._index)

    def iterate_keys(self) -> Iterator[str]:
        """Yield the keys of all records."""
        for number, path in enumerate(self._paths):
            for key in self._index.keys(number):
                yield _full_key(path, key)

    def key(self, index: int) -> str:
        """Return a record's key, which the index holds."""
        return _full_key(self._shard(index), self._index.key(index))

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        record = Record(self.key(index), index)
        if (data := self._read(index, JSON)) is not None:
            try:
                record = _json_record(parse_json(data, "the JSON"), record.key, index)
            except Exception as error:
                reason = describe_problem(error)
                raise BrokenSample("broken json", record.key, reason) from None
        if not record.captions and (data := self._read(index, TEXT)) is not None:
            try:
                captions = (decode_text(data, "the text"),)
            except ValueError as error:
                raise BrokenSample("broken text", record.key, str(error)) from None
            record = dataclasses.replace(record, captions=captions)
        return record

    def check_image(self, index: int) -> None:
        """Check that the record has an image; see `Source`."""
        if self._index.span(index, IMAGE) is None:
            raise BrokenSample("missing image", self.key(index))

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the image of a record; see `Source`."""
        data = self.encoded_image(index)
        return decode_image(data, self.key(index), at_least)

    def encoded_image(self, index: int) -> bytes:
        """Read the image of a record; see `Source`."""
        data = self._read(index, IMAGE)
        if data is None:
            raise BrokenSample("missing image", self.key(index))
        return data

    def content(self) -> Digests:
        """Return digests of the index, of the tars and of a sample of the records."""
        places = [
            (index, column)
            for index in evenly_spaced(len(self), MAX_READ)
            for column in (IMAGE, TEXT, JSON)
        ]
        # A store answers many requests at once.
        with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as threads:
            sample = hash_parts(threads.map(self._sampled, *zip(*places, strict=True)))
        return {
            "members and their order": self._index.digest,
            "members (sample)": sample,
            **file_digests(self._paths, "tar "),
        }

    def _sampled(self, index: int, column: int) -> bytes:
        """Read a record's image, text or JSON; b"" if it is absent or unreadable."""
        try:
            return self._read(index, column) or b""
        except BrokenSample:
            return b""

    def _shard(self, index: int) -> pathlib.Path:
        """Return the path of a record's tar."""
        return self._paths[self._index.tar_of(index)]

    def _read(self, index: int, column: int) -> bytes | None:
        """Read a record's image, text or JSON; None if it is absent."""
        span = self._index.span(index, column)
        if span is None:
            return None
        offset, size = span
        try:
            data = read_range(self._shard(index), offset, size)
        except OSError as error:
            raise BrokenSample("unreadable tar", self.key(index), str(error)) from None
        if len(data) < size:
            reason = f"{len(data)} of {size} bytes are there"
            raise BrokenSample("truncated tar", self.key(index), reason)
        return data


def _full_key(shard: pathlib.Path, key: bytes) -> str:
    """Return a record's key with its tar."""
    # Names in other encodings than UTF-8 are shown with escapes.
    return f"{shard.stem}/{key.decode('utf-8', errors='backslashreplace')}"


def _json_record(content: object, key: str, index: int) -> Record:
    """Return the record that the content of its JSON describes."""
    if isinstance(content, list):
        return Record(key, index, take_texts(content, "captions"))
    if not isinstance(content, dict):
        raise ValueError("the JSON is neither an object nor a list")
    return record_from_json(content, key, index)
