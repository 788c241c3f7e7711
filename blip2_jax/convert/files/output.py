"""Output files and folders that appear only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

import ml_dtypes  # registers bfloat16 with numpy
import numpy as np
import rich.console
import rich.progress
from safetensors import SafetensorError
from safetensors.numpy import save_file

from blip2_jax.parallel.store_path import StorePath

SHARD_BYTES = 2**29  # memory that a writer fills before it writes a shard
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNFINISHED = ".unfinished"
MARK = ".blip2_jax_conversion"  # a file in every folder that `atomic_output` makes
T = TypeVar("T")


@contextlib.contextmanager
def atomic_output(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path, which is renamed to `path` if the block succeeds.

    The temporary path is inside a marked folder beside `path`. Such a folder of an
    interrupted conversion to the same path is removed first; any other is left alone.
    If `path` is on a store, it is a local one, which is uploaded.

    Raises:
      FileExistsError: `path` exists and is not an empty folder; or the temporary folder
        exists and no conversion made it.
      OSError: the disk is full; the message names `path`.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already: name another output")
    if isinstance(path, StorePath):
        with _uploaded_output(path) as local:
            yield local
        return
    folder = path.with_name(path.name + UNFINISHED)
    if folder.exists() or folder.is_symlink():
        if folder.is_symlink() or not (folder / MARK).is_file():
            raise FileExistsError(
                f"{folder} is in the way and does not come from a conversion: move it, "
                "or name another output"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        (folder / MARK).touch()
        yield folder / path.name
        if path.is_dir():
            path.rmdir()
        (folder / path.name).rename(path)
    except OSError as error:
        if error.errno in NO_ROOM:
            reason = os.strerror(error.errno)
            raise OSError(error.errno, f"{reason}; {path} was not written") from error
        if error.errno is None:  # see `os_error`
            raise OSError(f"{error}; {path} was not written") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _uploaded_output(path: StorePath) -> Iterator[pathlib.Path]:
    """Yield a temporary local path, which is uploaded if the block succeeds."""
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder, path.name)
        yield local
        if local.is_file():
            path.upload(local)
            return
        files = [file for file in local.rglob("*") if file.is_file()]
        # What makes the folder a model comes last.
        for file in sorted(files, key=lambda file: (file.suffix == ".json", file)):
            (path / file.relative_to(local).as_posix()).upload(file)


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
        try:
            save_file(self._pending, shard, metadata={"format": "pt"})
        except SafetensorError as error:  # its class for what the system reports
            raise os_error(error) from error
        self._shards.append(list(self._pending))
        self._pending, self._bytes = {}, 0


def os_error(error: Exception) -> OSError:
    """Return the error of the system that another library reports as text."""
    text = str(error)
    for number in NO_ROOM:
        if os.strerror(number) in text or f"os error {number}" in text:
            return OSError(number, os.strerror(number))
    return OSError(f"the file cannot be written, maybe the disk is full ({text})")


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
