"""Checkpoint files as mappings from names to arrays that are read on access.

Supported formats are safetensors and torch pickles (`.pth`, `.pt`, `.bin`), as a single
file or in shards (`formats`). `folder_files` says which files of a folder are the
model's. Of a repository of the hub, a shard is downloaded when an array in it is read.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from blip2_jax.convert.files.array_file import ArrayFile, Index, RemoteFile, Spec
from blip2_jax.convert.files.errors import SourceError
from blip2_jax.convert.files.folder_files import SAFETENSORS, ModelFiles, model_files
from blip2_jax.convert.files.formats import numpy_dtype, open_file
from blip2_jax.convert.files.json_files import read_json_object
from blip2_jax.data import hub


class LazyArrays(Mapping[str, np.ndarray]):
    """Arrays by name, each read when it is accessed.

    The names are known without reading. A subclass defines `__getitem__`.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class CheckpointFiles(LazyArrays):
    """The arrays of a file or of a folder of shards; each access reads anew.

    Attributes:
      path: of the file or folder.
      name: what the user calls it: the path, or a name of the hub.
      spec: what to record: the path, or a name of the hub with its commit.
      config: content of the folder's `config.json`; {} if there is none.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        """Open the files and read the names of their arrays.

        Args:
          path: of a file or folder, or a name of the hub.

        Raises:
          SourceError: there are no weights, a shard is missing, or a file is damaged.
          HubError: a file of the hub cannot be fetched.
        """
        self.path = hub.local_path(path)
        repository = hub.repository_at(self.path)
        self.name = repository.name.typed if repository else str(path)
        self.spec = repository.pinned if repository else hub.pinned(str(path))
        self._file_of = _remote_files(repository) if repository else _files(self.path)
        super().__init__(self._file_of)
        self.config = _config(self.path)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file_of[name].read(name)

    def part(self, name: str, index: Index) -> np.ndarray:
        """Read a part of an array; of a safetensors file nothing else is read."""
        return self._file_of[name].read(name, index)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array without reading it."""
        return self._file_of[name].spec(name)[0]

    def dtype(self, name: str) -> np.dtype:
        """Return the dtype of an array without reading it."""
        return self._file_of[name].spec(name)[1]

    def digest(self, name: str) -> str:
        """Return the digest of an array's values."""
        return self._file_of[name].digest(name)


def part_reader(
    arrays: Mapping[str, np.ndarray], name: str
) -> Callable[[Index], np.ndarray]:
    """Return a function that reads parts of an array.

    If `arrays` has a method `part`, only the parts are read; if not, the array is read
    in full at once.
    """
    if hasattr(arrays, "part"):
        return functools.partial(arrays.part, name)
    return arrays[name].__getitem__


def _files(path: pathlib.Path) -> dict[str, ArrayFile]:
    """Return the file of every array by the array's name.

    Raises:
      SourceError: see `CheckpointFiles`; or two files hold the same array.
    """
    if path.is_file():
        single = open_file(path)
        return dict.fromkeys(single.names(), single)
    if not path.is_dir():
        raise SourceError(f"no file or folder {str(path)!r}")
    names = {file.name for file in path.iterdir() if file.is_file()}
    choice = model_files(names, lambda name: read_json_object(path / name), str(path))
    return _by_array(
        {name: open_file(path / name) for name in choice.files}, choice, path
    )


def _by_array(
    files: Mapping[str, ArrayFile], choice: ModelFiles, where: object
) -> dict[str, ArrayFile]:
    """Return the file of every array; compare the arrays with the index, if any.

    Raises:
      SourceError: two files hold an array, or files and index differ.
    """
    name_of: dict[str, str] = {}
    for file_name, file in files.items():
        for array in file.names():
            if array in name_of:
                raise SourceError(
                    f"{name_of[array]} and {file_name} in {where} both hold {array}: "
                    "name the one file that is meant"
                )
            name_of[array] = file_name
    for array, shard in choice.shard_of.items():
        if name_of.get(array) != shard:
            raise SourceError(f"{shard} lacks {array}, which {choice.index} names")
    if choice.index and (extra := sorted(name_of.keys() - choice.shard_of.keys())):
        raise SourceError(
            f"{name_of[extra[0]]} in {where} holds {extra[0]}, which {choice.index} "
            "does not name"
        )
    return {array: files[file_name] for array, file_name in name_of.items()}


def _remote_files(repository: hub.Repository) -> dict[str, ArrayFile]:
    """Return the file of every array of a repository; of weights nothing is read yet.

    A pickle without an index is downloaded, because its names cannot be read otherwise.
    """

    def read_index(name: str) -> dict[str, Any]:
        (path,) = repository.fetch(name)
        return read_json_object(path)

    name = repository.name.typed
    choice = model_files(repository.files, read_index, name)
    arrays_in: dict[str, list[str]] = {}
    for array, shard in choice.shard_of.items():
        arrays_in.setdefault(shard, []).append(array)
    files = {
        file: _remote_file(repository, file, arrays_in.get(file))
        for file in choice.files
    }
    return _by_array(files, choice, name)


def _remote_file(
    repository: hub.Repository, file: str, names: list[str] | None = None
) -> ArrayFile:
    """Return a file of a repository; `names` are those of its index."""

    def fetch() -> ArrayFile:
        (path,) = repository.fetch(file)
        return open_file(path)

    def specs() -> dict[str, Spec]:
        where = f"{repository.name.typed}/{file}"
        return {
            name: (shape, numpy_dtype(dtype, name, where))
            for name, (shape, dtype) in repository.tensors(file).items()
        }

    if (repository.folder / file).is_file():
        return fetch()
    return RemoteFile(fetch, specs if file.endswith(SAFETENSORS) else None, names)


def _config(path: pathlib.Path) -> dict[str, Any]:
    file = path / "config.json"
    return read_json_object(file) if path.is_dir() and file.is_file() else {}
