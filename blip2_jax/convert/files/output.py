"""Output files and folders that appear only when they are complete."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

import ml_dtypes  # registers bfloat16 with numpy
import numpy as np
import rich.console
import rich.progress
from safetensors.numpy import save_file

SHARD_BYTES = 2**29  # memory that a writer fills before it writes a shard
UNFINISHED = ".unfinished"
T = TypeVar("T")


@contextlib.contextmanager
def atomic_output(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path, which is renamed to `path` if the block succeeds.

    The output of an interrupted conversion to the same path is removed first.

    Raises:
      FileExistsError: `path` exists and is not an empty folder.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already: name another output")
    temporary = path.with_name(path.name + UNFINISHED)
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir():
            path.rmdir()
        temporary.rename(path)
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


class ShardWriter:
    """Writer of safetensors shards of about `limit` bytes each, and their index.

    Files have transformers' names: `model-00001-of-00003.safetensors` and so on, or
    `model.safetensors` if there is only one.
    """

    def __init__(self, directory: pathlib.Path, limit: int = SHARD_BYTES) -> None:
        self._directory, self._limit = directory, limit
        self._pending: dict[str, np.ndarray] = {}
        self._shards: list[list[str]] = []
        self._bytes = self._total = 0

    def add(self, name: str, array: np.ndarray) -> None:
        """Add an array; it is written with its shard."""
        if self._pending and self._bytes + array.nbytes > self._limit:
            self._flush()
        self._pending[name] = np.ascontiguousarray(array).reshape(array.shape)
        self._bytes += array.nbytes
        self._total += array.nbytes

    def close(self) -> None:
        """Write the last shard, rename the files and write the index."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._temporary(0).rename(self._directory / "model.safetensors")
            return
        shard_of: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._temporary(number).rename(self._directory / file)
            shard_of |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total}, "weight_map": shard_of}
        write_json(self._directory / "model.safetensors.index.json", index)

    def _temporary(self, number: int) -> pathlib.Path:
        """Return the path of a shard while the number of shards is unknown."""
        return self._directory / f"part-{number:05}"

    def _flush(self) -> None:
        shard = self._temporary(len(self._shards))
        save_file(self._pending, shard, metadata={"format": "pt"})
        self._shards.append(list(self._pending))
        self._pending, self._bytes = {}, 0


def write_json(path: pathlib.Path, content: object) -> None:
    """Write indented JSON with a newline at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def progress(items: Iterable[T], description: str) -> Iterable[T]:
    """Iterate with a progress bar on standard error if that is a terminal."""
    total = len(items) if isinstance(items, Sized) else None
    console = rich.console.Console(file=sys.stderr)
    return rich.progress.track(
        items,
        description,
        total=total,
        console=console,
        transient=True,
        disable=not console.is_terminal,  # otherwise it ends with an empty line
    )


def cast(array: np.ndarray, dtype: str | None) -> np.ndarray:
    """Cast a floating-point array; return integers, and any array for None, as is."""
    floating = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    return array.astype(np.dtype(dtype)) if dtype and floating else array
