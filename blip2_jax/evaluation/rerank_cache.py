"""Finished rows of a re-ranking on disk, so that an interrupted run can continue.

A directory holds `what.json`, the key of the rows, and files of rows, one per process
and start. A row is an image with its scored texts: little-endian int32 image and count,
then count x int32 texts and count x float32 logits.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from blip2_jax.parallel import hosts

_INT, _FLOAT = np.dtype("<i4"), np.dtype("<f4")
_KEY_FILE = "what.json"


class RerankCache:
    """Match logits of images with texts, in a directory that all processes share."""

    def __init__(self, directory: pathlib.Path, key: Mapping[str, Any]):
        """Read the finished rows; all processes must call this.

        Args:
          directory: visible to all processes; rows with another key are deleted.
          key: all that the logits depend on: digests of model and data, settings.
        """
        self._directory = directory
        if hosts.is_first():
            _prepare(directory, dict(key))
        hosts.barrier("the re-ranking cache is prepared")
        self._rows: dict[int, tuple[Array, Array]] = {}
        for path in sorted(directory.glob("rows-*.bin")):
            self._rows |= _read(path)
        hosts.barrier("the re-ranking cache is read")
        name = f"rows-{hosts.own_share().index}"
        starts = len(list(directory.glob(f"{name}-*.bin")))
        self._file = (directory / f"{name}-{starts}.bin").open("ab")

    def __len__(self) -> int:
        """Return the number of images that were finished before."""
        return len(self._rows)

    def find(
        self, image: int, texts: Int[Array, " texts"]
    ) -> Float[Array, " texts"] | None:
        """Return the logits of exactly these texts with an image, or None."""
        row = self._rows.get(image)
        if row is None or not np.array_equal(row[0], texts):
            return None
        return row[1]

    def add(
        self, image: int, texts: Int[Array, " texts"], logits: Float[Array, " texts"]
    ) -> None:
        """Append a row to this process's file and flush it to the operating system."""
        head = np.array([image, len(texts)], _INT)
        parts = (head, texts.astype(_INT), logits.astype(_FLOAT))
        self._file.write(b"".join(part.tobytes() for part in parts))
        self._file.flush()

    def delete(self) -> None:
        """Delete the directory; all processes must call this."""
        self._file.close()
        hosts.barrier("the re-ranking cache can be deleted")
        if hosts.is_first():
            for path in self._directory.glob("rows-*.bin"):
                path.unlink()
            (self._directory / _KEY_FILE).unlink()
            self._directory.rmdir()


def _prepare(directory: pathlib.Path, key: dict[str, Any]) -> None:
    """Create the directory, and delete rows of another key."""
    text = json.dumps(key, indent=1, sort_keys=True) + "\n"
    file = directory / _KEY_FILE
    if file.is_file() and file.read_text() == text:
        return
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("rows-*.bin"):
        path.unlink()
    file.write_text(text)


def _read(path: pathlib.Path) -> dict[int, tuple[Array, Array]]:
    """Read the complete rows of a file; a kill may have cut off the last one."""
    data = path.read_bytes()
    rows, offset = {}, 0
    while offset + 2 * _INT.itemsize <= len(data):
        image, count = np.frombuffer(data, _INT, 2, offset)
        texts_at = offset + 2 * _INT.itemsize
        logits_at = texts_at + count * _INT.itemsize
        offset = logits_at + count * _FLOAT.itemsize
        if offset > len(data):
            break
        texts = np.frombuffer(data, _INT, count, texts_at)
        rows[int(image)] = texts, np.frombuffer(data, _FLOAT, count, logits_at)
    return rows
