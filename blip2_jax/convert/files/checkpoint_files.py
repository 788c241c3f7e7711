"""Checkpoint files of other projects as arrays by name, read one at a time.

Understood are safetensors, whole or in shards, and torch's pickles (`.pth`, `.pt`,
`.bin`), whole or in shards; a folder is read by its index or by what lies in it.
Pickles need torch, which maps them into memory; it is told to refuse any that hold
more than arrays.
"""

from __future__ import annotations

import abc
import json
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from types import EllipsisType
from typing import Any

import ml_dtypes  # numpy learns bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open

from blip2_jax.convert.files.lazy_arrays import LazyArrays

SAFETENSORS = ".safetensors"
PICKLES = (".bin", ".pth", ".pt")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Inside a pickle, what may stand around the arrays: LAVIS, EVA and others.
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


# Which part of an array: a slice for each axis, or all of it.
Index = tuple[slice, ...] | EllipsisType


class SourceError(ValueError):
    """A file that cannot be read as weights, or not as those that were expected."""


class File(abc.ABC):
    """One file of arrays."""

    @abc.abstractmethod
    def names(self) -> list[str]:
        """What it holds."""

    @abc.abstractmethod
    def read(self, name: str, index: Index = ...) -> np.ndarray:
        """One array, or the part at `index`; it may be a view of the file."""

    @abc.abstractmethod
    def spec(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype without reading."""


class SafetensorsFile(File):
    """See `safetensors`."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        try:
            with safe_open(path, "np") as content:
                names = list(content.keys())
                self._specs = {n: _spec(content.get_slice(n)) for n in names}
        except (SafetensorError, OSError) as error:
            raise SourceError(
                f"{path} is no whole safetensors file: {error}"
            ) from error

    def names(self) -> list[str]:
        """What it holds."""
        return list(self._specs)

    def read(self, name: str, index: Index = ...) -> np.ndarray:
        """See `File`; the file is closed again, so that its pages do not add up."""
        with safe_open(self._path, "np") as content:
            return content.get_slice(name)[index]

    def spec(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype without reading."""
        return self._specs[name]


def _spec(part: Any) -> tuple[tuple[int, ...], np.dtype]:
    return tuple(part.get_shape()), np.dtype(DTYPES[part.get_dtype()])


class PickleFile(File):
    """What `torch.save` wrote: a mapping of names to tensors, or one inside another."""

    def __init__(self, path: pathlib.Path) -> None:
        self._tensors = _unwrap(_torch_load(path), path)

    def names(self) -> list[str]:
        """What it holds."""
        return list(self._tensors)

    def read(self, name: str, index: Index = ...) -> np.ndarray:
        """See `File`; numpy has no bfloat16 of its own: those bits are looked at."""
        import torch

        tensor = self._tensors[name].detach()[index]
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    def spec(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype without reading."""
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
            f"{path} is refused: it is damaged, or holds more than weights, and "
            f"unpickling such a file may run code ({_line(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise SourceError(f"{path} is no whole torch file: {_line(error)}") from error


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _unwrap(content: Any, path: pathlib.Path) -> dict[str, Any]:
    import torch

    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise SourceError(f"{path} holds {type(content).__name__}, not arrays by name")
    tensors = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise SourceError(f"{path} holds no arrays, but {', '.join(content) or 'none'}")
    return tensors


class CheckpointFiles(LazyArrays):
    """Arrays by name, of a file or of a folder of shards; each access reads anew.

    Attributes:
      path: of the file or folder.
      config: what a Hugging Face folder's `config.json` says; {} elsewhere.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        """Find the files and what they hold.

        Raises:
          SourceError: nothing there, a shard is missing, or a file is damaged.
        """
        self.path = pathlib.Path(path)
        self._file_of = _files(self.path)
        super().__init__(self._file_of)
        self.config = _config(self.path)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file_of[name].read(name)

    def part(self, name: str, index: Index) -> np.ndarray:
        """Part of an array; of a safetensors file, nothing else is read."""
        return self._file_of[name].read(name, index)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, without reading it."""
        return self._file_of[name].spec(name)[0]

    def dtype(self, name: str) -> np.dtype:
        """Dtype of an array, without reading it."""
        return self._file_of[name].spec(name)[1]


def _files(path: pathlib.Path) -> dict[str, File]:
    if path.is_file():
        return _by_name([path])
    if not path.is_dir():
        raise SourceError(f"no file or folder {str(path)!r}")
    for name in INDEXES:
        if (path / name).is_file():
            return _indexed(path / name)
    choices: tuple[tuple[str, ...], ...] = ((SAFETENSORS,), PICKLES)
    for endings in choices:
        found = sorted(file for file in path.iterdir() if file.suffix in endings)
        if found:
            return _by_name(found)
    known = ", ".join((SAFETENSORS, *PICKLES))
    raise SourceError(f"no weights in {path}: nothing there ends with {known}")


def _by_name(paths: list[pathlib.Path]) -> dict[str, File]:
    files = [_open(path) for path in paths]
    return {name: file for file in files for name in file.names()}


def _open(path: pathlib.Path) -> File:
    if path.suffix == SAFETENSORS:
        return SafetensorsFile(path)
    if path.suffix in PICKLES:
        return PickleFile(path)
    raise SourceError(f"{path}: weights end with {', '.join((SAFETENSORS, *PICKLES))}")


def _indexed(index: pathlib.Path) -> dict[str, File]:
    """The files that an index names; each must be there and hold what it should."""
    try:
        shard_of: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise SourceError(f"{index} is no index of shards: {error}") from error
    shards = sorted(set(shard_of.values()))
    absent = [name for name in shards if not (index.parent / name).is_file()]
    if absent:
        raise SourceError(
            f"{index.parent} lacks {len(absent)} of {len(shards)} shards that its "
            f"index names: {', '.join(absent[:5])}"
        )
    files = {name: _open(index.parent / name) for name in shards}
    held = {name: set(file.names()) for name, file in files.items()}
    for name, shard in shard_of.items():
        if name not in held[shard]:
            file = index.parent / shard
            raise SourceError(f"{file} lacks {name}, which {index.name} names")
    return {name: files[shard] for name, shard in shard_of.items()}


def _config(path: pathlib.Path) -> dict[str, Any]:
    file = path / "config.json"
    return json.loads(file.read_text()) if path.is_dir() and file.is_file() else {}
