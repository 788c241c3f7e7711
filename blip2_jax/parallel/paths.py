"""Paths that may be local or on an object store, `gs://` and `s3://`.

`as_path` turns what a user wrote into a path: an ordinary `pathlib.Path`, or a
`StorePath` with the same methods. Names of the Hugging Face hub (`hf://`) are not paths
here; `blip2_jax.data.hub` fetches their files.
"""

from __future__ import annotations

import glob
import os
import pathlib
import re
import typing

from blip2_jax.parallel.store_path import StorePath, store_uri

AnyPath = str | os.PathLike[str]
_OTHER_STORE = re.compile(r"([a-z][a-z0-9]+)://")


def is_remote(path: AnyPath) -> bool:
    """Return True if a path is on an object store."""
    return isinstance(path, StorePath) or store_uri(path) is not None


def as_path(path: AnyPath) -> pathlib.Path:
    """Return a path with the methods of `pathlib.Path`.

    Args:
      path: a local path, or `gs://BUCKET/KEY` or `s3://BUCKET/KEY`.

    Returns:
      A `pathlib.Path`, or a `StorePath`, which is declared as one because it has those
      of its methods that this package uses.

    Raises:
      ValueError: the name of another kind of store.
    """
    if isinstance(path, StorePath):
        return typing.cast(pathlib.Path, path)
    uri = store_uri(path)
    if uri is None:
        if (match := _OTHER_STORE.match(os.fspath(path))) and match[1] != "hf":
            raise ValueError(
                f"{str(path)!r}: paths are local, gs://BUCKET/... or s3://BUCKET/..."
            )
        return pathlib.Path(path)
    return typing.cast(pathlib.Path, StorePath(uri))


def glob_paths(pattern: AnyPath) -> list[pathlib.Path]:
    """Return the sorted paths that match a path or pattern, local or on a store.

    A path that exists is not a pattern.
    """
    path = as_path(pattern)
    if path.exists():
        return [path]
    if not isinstance(path, StorePath):
        return sorted(map(pathlib.Path, glob.glob(os.fspath(path))))
    return typing.cast(list[pathlib.Path], list(path.expand()))


def list_files(folder: AnyPath) -> list[str]:
    """Return the names of all files below a folder, relative to it, with "/"."""
    path = as_path(folder)
    if isinstance(path, StorePath):
        return list(path.files())
    return [
        pathlib.Path(directory, name).relative_to(path).as_posix()
        for directory, _, files in os.walk(path)
        for name in files
    ]


def read_range(path: AnyPath, offset: int, size: int) -> bytes:
    """Read a part of a file.

    Args:
      path: a local path or one on a store, where only this part is transferred.
      offset: of the first byte.
      size: number of bytes.

    Returns:
      The bytes; fewer if the file ends before.

    Raises:
      OSError: the file cannot be read.
      StoreError: the store is away for too long.
    """
    path = as_path(path)
    if isinstance(path, StorePath):
        return path.read_range(offset, size)
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def file_state(path: AnyPath) -> tuple[int, str]:
    """Return the size of a file in bytes, and a mark that changes when it is written.

    The mark is the time of a local file in nanoseconds, and the ETag or generation of
    an object.

    Raises:
      OSError: there is no such file.
      StoreError: the store is away for too long.
    """
    path = as_path(path)
    if isinstance(path, StorePath):
        return path.file_state()
    state = path.stat()
    return state.st_size, str(state.st_mtime_ns)
