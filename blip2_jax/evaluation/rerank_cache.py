"""Finished rows of a re-ranking on disk, so that one that was killed goes on.

A directory holds `what.json`, which says what the rows belong to, and files of rows,
one for each process and start. A row is an image with its scored texts: little-endian
int32 image and count, then count x int32 texts and count x float32 logits.
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
_WHAT = "what.json"


class FinishedRows:
    """Logits of images with texts; one of these a process."""

    def __init__(self, directory: pathlib.Path, what: Mapping[str, Any]):
        """Read what is there; all processes must call this.

        Args:
          directory: seen by all processes; rows of something else are deleted.
          what: what decides on the logits: digests of model and data, settings.
        """
        self._directory = directory
        if hosts.is_first():
            _prepare(directory, dict(what))
        hosts.barrier("finished rows can be read")
        self._rows: dict[int, tuple[Array, Array]] = {}
        for path in sorted(directory.glob("rows-*.bin")):
            self._rows |= _read(path)
        hosts.barrier("finished rows are read")
        name = f"rows-{hosts.own_share().index}"
        starts = len(list(directory.glob(f"{name}-*.bin")))
        self._file = (directory / f"{name}-{starts}.bin").open("ab")

    def __len__(self) -> int:
        return len(self._rows)

    def find(
        self, image: int, texts: Int[Array, " texts"]
    ) -> Float[Array, " texts"] | None:
        """The logits of exactly these texts with an image, if they are there."""
        found = self._rows.get(image)
        if found is None or not np.array_equal(found[0], texts):
            return None
        return found[1]

    def add(
        self, image: int, texts: Int[Array, " texts"], logits: Float[Array, " texts"]
    ) -> None:
        """Keep a row, on disk when this returns (not necessarily after a power cut)."""
        head = np.array([image, len(texts)], _INT)
        parts = (head, texts.astype(_INT), logits.astype(_FLOAT))
        self._file.write(b"".join(part.tobytes() for part in parts))
        self._file.flush()

    def delete(self) -> None:
        """What is finished needs no scratch; all processes must call this."""
        self._file.close()
        hosts.barrier("finished rows are not needed any more")
        if hosts.is_first():
            for path in (*self._directory.glob("rows-*.bin"), self._directory / _WHAT):
                path.unlink()
            self._directory.rmdir()


def _prepare(directory: pathlib.Path, what: dict[str, Any]) -> None:
    """An existing directory stays if its rows are of the same thing."""
    text = json.dumps(what, indent=1, sort_keys=True) + "\n"
    told = directory / _WHAT
    if told.is_file() and told.read_text() == text:
        return
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("rows-*.bin"):
        path.unlink()
    told.write_text(text)


def _read(path: pathlib.Path) -> dict[int, tuple[Array, Array]]:
    """The whole rows of a file; the last may have been cut off in writing."""
    data = path.read_bytes()
    rows, place = {}, 0
    while place + 2 * _INT.itemsize <= len(data):
        image, count = np.frombuffer(data, _INT, 2, place)
        texts_at = place + 2 * _INT.itemsize
        logits_at = texts_at + count * _INT.itemsize
        place = logits_at + count * _FLOAT.itemsize
        if place > len(data):
            break
        texts = np.frombuffer(data, _INT, count, texts_at)
        rows[int(image)] = texts, np.frombuffer(data, _FLOAT, count, logits_at)
    return rows
