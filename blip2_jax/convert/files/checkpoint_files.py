"""Checkpoint files as mappings from names to arrays that are read on access.

Supported formats are safetensors and torch pickles (`.pth`, `.pt`, `.bin`), as a single
file or in shards. A folder is read by its index, or all files in it if it has none.
Pickles need torch, which memory-maps them and refuses files that hold more than arrays.
Of a repository of the hub, a shard is downloaded when an array in it is read.
"""

from __future__ import annotations

import functools
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes  # registers bfloat16 with numpy
import numpy as np
from safetensors import SafetensorError, safe_open

from blip2_jax.convert.files.array_file import ArrayFile, Index, RemoteFile
from blip2_jax.convert.files.digests import stored_digests
from blip2_jax.data import hub
from blip2_jax.parallel.files import FileFormatError, read_json

SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".pth", ".pt")
FORMATS: tuple[tuple[str, ...], ...] = ((SAFETENSORS,), PICKLES)
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
# Keys under which LAVIS, EVA and others nest the arrays inside a pickle.
WRAPPERS = ("model", "state_dict", "module")
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class SourceError(ValueError):
    """A file that cannot be read as weights, or holds other weights than expected."""


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


class SafetensorsFile(ArrayFile):
    """A safetensors file."""

    def __init__(self, path: pathlib.Path) -> None:
        """Read the header.

        Raises:
          SourceError: the file is damaged or incomplete.
        """
        self._path = path
        try:
            with safe_open(path, "np") as content:
                names = list(content.keys())
                self._specs = {n: _spec(content.get_slice(n)) for n in names}
        except (SafetensorError, OSError) as error:
            raise SourceError(
                f"{path} is not a complete safetensors file: {error}"
            ) from error

    def names(self) -> list[str]:
        """Return the names of its arrays."""
        return list(self._specs)

    def read(self, name: str, index: Index = ...) -> np.ndarray:
        """Read an array, or the part at `index`."""
        # Opened for each array: the pages of an open file would add up in memory.
        with safe_open(self._path, "np") as content:
            return content.get_slice(name)[index]

    def digest(self, name: str) -> str:
        """Return the digest of an array, computed once per state of the file."""
        return stored_digests(self._path)[name]

    def spec(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype of an array without reading it."""
        return self._specs[name]


def _spec(part: Any) -> tuple[tuple[int, ...], np.dtype]:
    return tuple(part.get_shape()), np.dtype(DTYPES[part.get_dtype()])


class PickleFile(ArrayFile):
    """A file of `torch.save`: a mapping of names to tensors, possibly nested in one."""

    def __init__(self, path: pathlib.Path) -> None:
        """Map the file into memory.

        Raises:
          SourceError: torch is missing or cannot read the file.
        """
        self._tensors = _unwrap(_torch_load(path), path)

    def names(self) -> list[str]:
        """Return the names of its arrays."""
        return list(self._tensors)

    def read(self, name: str, index: Index = ...) -> np.ndarray:
        """Read an array, or the part at `index`, as a view of the file."""
        import torch

        tensor = self._tensors[name].detach()[index]
        if tensor.dtype == torch.bfloat16:  # torch cannot export it to numpy
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    def spec(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return shape and dtype of an array without reading it."""
        tensor = self._tensors[name]
        return tuple(tensor.shape), np.dtype(str(tensor.dtype).removeprefix("torch."))


def _torch_load(path: pathlib.Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise SourceError(
            f"{path} is a pickled file, which only torch can read: pip install torch"
        ) from error
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        return torch.load(path, mmap=zipfile.is_zipfile(path), **options)
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path} is refused: it is damaged or holds more than weights, and "
            f"unpickling such a file may run code ({_first_line(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise SourceError(
            f"{path} is not a complete torch file: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _unwrap(content: Any, path: pathlib.Path) -> dict[str, Any]:
    """Return the tensors by name of an unpickled file."""
    import torch

    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise SourceError(
            f"{path} holds an object of type {type(content).__name__}, not arrays by "
            "name"
        )
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        keys = ", ".join(map(str, content)) or "none"
        raise SourceError(f"{path} holds no arrays; its keys are: {keys}")
    return tensors


def _files(path: pathlib.Path) -> dict[str, ArrayFile]:
    """Return the file of every array by the array's name."""
    if path.is_file():
        return _by_name([path])
    if not path.is_dir():
        raise SourceError(f"no file or folder {str(path)!r}")
    for name in INDEXES:
        if (path / name).is_file():
            return _indexed(path / name)
    for suffixes in FORMATS:
        files = sorted(file for file in path.iterdir() if file.suffix in suffixes)
        if files:
            return _by_name(files)
    known = ", ".join((SAFETENSORS, *PICKLES))
    raise SourceError(f"no weights in {path}: it has no file with suffix {known}")


def _by_name(paths: list[pathlib.Path]) -> dict[str, ArrayFile]:
    files = [_open(path) for path in paths]
    return {name: file for file in files for name in file.names()}


def _open(path: pathlib.Path) -> ArrayFile:
    if path.suffix == SAFETENSORS:
        return SafetensorsFile(path)
    if path.suffix in PICKLES:
        return PickleFile(path)
    known = ", ".join((SAFETENSORS, *PICKLES))
    raise SourceError(f"{path} has none of the suffixes of weights: {known}")


def _shard_of(index: pathlib.Path) -> dict[str, str]:
    """Read the shard of every array from an index."""
    try:
        return read_json(index)["weight_map"]
    except (FileFormatError, KeyError, TypeError) as error:
        raise SourceError(f"{index} is not an index of shards: {error}") from error


def _indexed(index: pathlib.Path) -> dict[str, ArrayFile]:
    """Open the shards that an index names and check that none lacks an array."""
    shard_of = _shard_of(index)
    shards = sorted(set(shard_of.values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise SourceError(
            f"{index.parent} lacks {len(missing)} of the {len(shards)} shards that its "
            f"index names: {', '.join(missing[:5])}"
        )
    files = {name: _open(index.parent / name) for name in shards}
    names_in = {name: set(file.names()) for name, file in files.items()}
    for name, shard in shard_of.items():
        if name not in names_in[shard]:
            file = index.parent / shard
            raise SourceError(f"{file} lacks {name}, which {index.name} names")
    return {name: files[shard] for name, shard in shard_of.items()}


def _remote_files(repository: hub.Repository) -> dict[str, ArrayFile]:
    """Return the file of every array of a repository; of weights nothing is read yet.

    Safetensors come before pickles. A pickle without an index is downloaded, because
    its names cannot be read otherwise.
    """
    for suffixes, index, single in zip(FORMATS, INDEXES, SINGLE_FILES, strict=True):
        if index in repository.files:
            return _remote_shards(repository, index)
        weights = [
            file
            for file in repository.files
            if file.endswith(suffixes) and "/" not in file
        ]
        if weights:
            chosen = [single] if single in weights else weights
            files = [_remote_file(repository, file) for file in chosen]
            return {name: file for file in files for name in file.names()}
    raise SourceError(
        f"{repository.name.typed} has no weights that this package reads "
        f"({', '.join(map(' '.join, FORMATS))}); its files are "
        f"{', '.join(repository.files[:10])}"
    )


def _remote_shards(repository: hub.Repository, index: str) -> dict[str, ArrayFile]:
    (path,) = repository.fetch(index)
    shard_of = _shard_of(path)
    names_in: dict[str, list[str]] = {}
    for name, shard in shard_of.items():
        names_in.setdefault(shard, []).append(name)
    if missing := sorted(names_in.keys() - set(repository.files)):
        raise SourceError(
            f"{repository.name.typed} lacks {len(missing)} of the {len(names_in)} "
            f"shards that its {index} names: {', '.join(missing[:5])}"
        )
    shards = {s: _remote_file(repository, s, names) for s, names in names_in.items()}
    return {name: shards[shard] for name, shard in shard_of.items()}


def _remote_file(
    repository: hub.Repository, file: str, names: list[str] | None = None
) -> ArrayFile:
    """Return a file of a repository; `names` are those of its index."""

    def fetch() -> ArrayFile:
        (path,) = repository.fetch(file)
        return _open(path)

    def specs() -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        tensors = repository.tensors(file)
        return {n: (shape, np.dtype(DTYPES[t])) for n, (shape, t) in tensors.items()}

    if (repository.folder / file).is_file():
        return fetch()
    return RemoteFile(fetch, specs if file.endswith(SAFETENSORS) else None, names)


def _config(path: pathlib.Path) -> dict[str, Any]:
    file = path / "config.json"
    return read_json(file) if path.is_dir() and file.is_file() else {}
