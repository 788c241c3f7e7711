"""Writing large folders and files so that a half-written one never looks complete."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

import ml_dtypes  # numpy learns bfloat16
import numpy as np
import rich.console
import rich.progress
from safetensors.numpy import save_file

SHARD_BYTES = 2**29  # what a writer holds back before it writes
UNFINISHED = ".unfinished"
T = TypeVar("T")


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A place to write at; it becomes `path` when the block ends well.

    Whatever an interrupted conversion left there is removed first.

    Raises:
      FileExistsError: `path` is there already.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already: name another output")
    place = path.with_name(path.name + UNFINISHED)
    _remove(place)
    try:
        yield place
        if path.is_dir():
            path.rmdir()
        place.rename(path)
    except BaseException:
        _remove(place)
        raise


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


class ShardWriter:
    """Safetensors files of about `limit` bytes each, and their index.

    Files are called `model-00001-of-00003.safetensors`, or `model.safetensors` where
    there is one alone, as transformers does.
    """

    def __init__(self, directory: pathlib.Path, limit: int = SHARD_BYTES) -> None:
        self._directory, self._limit = directory, limit
        self._held: dict[str, np.ndarray] = {}
        self._shards: list[list[str]] = []
        self._bytes = self._total = 0

    def add(self, name: str, array: np.ndarray) -> None:
        """Take an array; it may be written at once or later."""
        if self._held and self._bytes + array.nbytes > self._limit:
            self._flush()
        self._held[name] = np.ascontiguousarray(array).reshape(array.shape)
        self._bytes += array.nbytes
        self._total += array.nbytes

    def close(self) -> None:
        """Write what is held, give the files their names, write the index."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._part(0).rename(self._directory / "model.safetensors")
            return
        shard_of: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._part(number).rename(self._directory / file)
            shard_of |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total}, "weight_map": shard_of}
        write_json(self._directory / "model.safetensors.index.json", index)

    def _part(self, number: int) -> pathlib.Path:
        return self._directory / f"part-{number:05}"

    def _flush(self) -> None:
        save_file(self._held, self._part(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._held))
        self._held, self._bytes = {}, 0


def write_json(path: pathlib.Path, content: object) -> None:
    """Indented JSON with a last newline."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def progress(items: Iterable[T], what: str) -> Iterable[T]:
    """A progress bar over items, on a terminal's standard error."""
    total = len(items) if isinstance(items, Sized) else None
    return rich.progress.track(
        items,
        what,
        total=total,
        console=rich.console.Console(file=sys.stderr),
        transient=True,
    )


def cast(array: np.ndarray, dtype: str | None) -> np.ndarray:
    """A floating array in another dtype; as it is for None, and where it holds ints."""
    floating = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    return array.astype(np.dtype(dtype)) if dtype and floating else array
