"""The files of a search index: vectors, and a log that says whose they are.

    index.json       what the vectors depend on, and the number of the files below
    vectors-N.bin    float32 [slots, Q, C], appended
    entries-N.jsonl  a line per image, appended after its vectors; the last line counts

A killed writer leaves at most vectors without a line and half a line; the next writer
cuts both off. Images that change get a new slot. When most slots are unused, the files
are written anew under the next number; who has the old ones open keeps reading them.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from blip2_jax.parallel.files import FileFormatError, parse_json, read_json
from blip2_jax.parallel.shard_files import write_json

_SETTINGS = "index.json"
_VERSION = 1
_COPIED = 1024  # vectors that are copied at once


class Entry(NamedTuple):
    """What the index knows of an image.

    Attributes:
      stamp: changes when the image's file does.
      slot: of its vectors; -1: it is broken.
      broken: what is wrong with it; "": nothing.
    """

    stamp: str
    slot: int
    broken: str = ""


class IndexFiles:
    """The files of an index in a directory.

    Attributes:
      entries: of all images by name, in the order in which they were added.

    Args:
      directory: of the index.

    Raises:
      FileNotFoundError: there is no index.
      FileFormatError: a file is damaged, or of another version.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        if not is_index(directory):
            raise FileNotFoundError(f"no index in {directory}: build one first")
        self._settings = read_json(directory / _SETTINGS)
        if self._settings.get("version") != _VERSION:
            raise FileFormatError(f"{directory / _SETTINGS} is of another version")
        self.entries: dict[str, Entry] = {}
        self._slots = 0  # that the log knows, used or not
        self._log_bytes = 0
        self._read_log()

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what the vectors depend on, as given to `create_index`."""
        settings: Mapping[str, Any] = self._settings["settings"]
        return settings

    def vectors(self) -> Float[Array, "slots Q C"]:
        """Map the vectors to memory."""
        shape = (self._slots, *self._settings["shape"])
        if not self._slots:
            return np.zeros(shape, np.float32)
        return np.memmap(self._vector_file, np.float32, "r", shape=shape)

    def repair(self) -> None:
        """Cut off what a killed writer left; only the writer may call this."""
        _cut(self._log_file, self._log_bytes)
        _cut(self._vector_file, self._slots * self._slot_bytes)

    def append(
        self,
        images: Sequence[tuple[str, str, str]],
        vectors: Float[Array, "images Q C"],
    ) -> None:
        """Add images or replace them.

        Args:
          images: name, stamp and cause ("": none) of each; broken ones have a cause.
          vectors: of the images without a cause, in order.
        """
        with self._vector_file.open("ab") as file:
            file.write(np.ascontiguousarray(vectors, np.float32).tobytes())
            _sync(file)
        lines = []
        for name, stamp, broken in images:
            slot = -1
            if not broken:
                slot, self._slots = self._slots, self._slots + 1
            self.entries[name] = Entry(stamp, slot, broken)
            lines.append([name, *self.entries[name]])
        self._append_lines(lines)

    def remove(self, names: Sequence[str]) -> None:
        """Remove images."""
        for name in names:
            del self.entries[name]
        self._append_lines([[name] for name in names])

    def compact(self) -> None:
        """Write the files anew if more than half of the slots are unused."""
        used = [name for name, entry in self.entries.items() if not entry.broken]
        if self._slots <= 2 * len(used):
            return
        vectors, old = self.vectors(), (self._vector_file, self._log_file)
        slots = [self.entries[name].slot for name in used]
        numbers = {name: number for number, name in enumerate(used)}
        self._settings["number"] += 1
        with self._vector_file.open("wb") as file:
            for start in range(0, len(slots), _COPIED):
                file.write(vectors[slots[start : start + _COPIED]].tobytes())
            _sync(file)
        self.entries = {
            name: entry._replace(slot=numbers.get(name, -1))
            for name, entry in self.entries.items()
        }
        self._slots = len(used)
        self._log_file.write_bytes(b"")
        self._append_lines([[name, *entry] for name, entry in self.entries.items()])
        write_json(self._directory / _SETTINGS, self._settings)
        for path in old:
            path.unlink()

    @property
    def _vector_file(self) -> pathlib.Path:
        return self._directory / f"vectors-{self._settings['number']}.bin"

    @property
    def _log_file(self) -> pathlib.Path:
        return self._directory / f"entries-{self._settings['number']}.jsonl"

    @property
    def _slot_bytes(self) -> int:
        size = 4
        for length in self._settings["shape"]:
            size *= length
        return size

    def _append_lines(self, lines: Sequence[Sequence[Any]]) -> None:
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with self._log_file.open("ab") as file:
            file.write(content)
            _sync(file)
        self._log_bytes += len(content)

    def _read_log(self) -> None:
        """Read the whole lines of the log.

        Raises:
          FileFormatError: a line is damaged, or the vectors of one are missing.
        """
        for number, line in enumerate(_whole_lines(self._log_file.read_bytes()), 1):
            self._log_bytes += len(line)
            content = parse_json(line, f"{self._log_file}, line {number}")
            name, *values = content
            if not values:
                self.entries.pop(name, None)
                continue
            entry = Entry(*values)
            self.entries[name] = entry
            self._slots = max(self._slots, entry.slot + 1)
        if self._vector_file.stat().st_size < self._slots * self._slot_bytes:
            raise FileFormatError(f"{self._vector_file} is shorter than its log says")


def is_index(directory: pathlib.Path) -> bool:
    """Return True if a directory holds an index."""
    return (directory / _SETTINGS).is_file()


def create_index(
    directory: pathlib.Path, settings: Mapping[str, Any], shape: tuple[int, int]
) -> None:
    """Write an empty index.

    Args:
      directory: of the index, which is made.
      settings: what its vectors depend on, as JSON.
      shape: Q and C.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("vectors-0.bin", "entries-0.jsonl"):
        (directory / name).write_bytes(b"")
    content = {"version": _VERSION, "number": 0, "shape": shape, "settings": settings}
    write_json(directory / _SETTINGS, content)


def _whole_lines(content: bytes) -> Iterator[bytes]:
    for line in content.splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield line


def _cut(path: pathlib.Path, size: int) -> None:
    if path.stat().st_size > size:
        os.truncate(path, size)


def _sync(file: Any) -> None:
    """Write a file's content to the disk, so that the log never is ahead of it."""
    file.flush()
    os.fsync(file.fileno())
