"""The formats of checkpoint files: safetensors and torch pickles.

Pickles need torch, which memory-maps them and refuses files that hold more than arrays.
"""

from __future__ import annotations

import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # registers bfloat16 with numpy
import numpy as np
from safetensors import SafetensorError, safe_open

from blip2_jax.convert.files.array_file import ArrayFile, Index, Spec
from blip2_jax.convert.files.digests import stored_digests
from blip2_jax.convert.files.errors import SourceError
from blip2_jax.convert.files.folder_files import PICKLES, SAFETENSORS
from blip2_jax.parallel.messages import first_line

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


def open_file(path: pathlib.Path) -> ArrayFile:
    """Open a checkpoint file by its suffix.

    Raises:
      SourceError: the suffix is unknown, or the file cannot be read.
    """
    if path.suffix == SAFETENSORS:
        return SafetensorsFile(path)
    if path.suffix in PICKLES:
        return PickleFile(path)
    known = ", ".join((SAFETENSORS, *PICKLES))
    raise SourceError(f"{path} has none of the suffixes of weights: {known}")


def numpy_dtype(name: str, array: str, where: object) -> np.dtype:
    """Return numpy's dtype for one of a safetensors header.

    Args:
      name: of the dtype, such as "BF16".
      array: name of the array, for the message.
      where: its file, for the message.

    Raises:
      SourceError: the dtype is not one of weights.
    """
    if name not in DTYPES:
        raise SourceError(
            f"{array} in {where} has the dtype {name}; supported are "
            f"{', '.join(DTYPES)}"
        )
    return np.dtype(DTYPES[name])


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
                self._specs = {name: _spec(content, name, path) for name in names}
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

    def spec(self, name: str) -> Spec:
        """Return shape and dtype of an array without reading it."""
        return self._specs[name]


def _spec(content: Any, name: str, path: pathlib.Path) -> Spec:
    part = content.get_slice(name)
    return tuple(part.get_shape()), numpy_dtype(part.get_dtype(), name, path)


class PickleFile(ArrayFile):
    """A file of `torch.save`: a mapping of names to tensors, possibly nested in one."""

    def __init__(self, path: pathlib.Path) -> None:
        """Map the file into memory.

        Raises:
          SourceError: torch is missing or cannot read the file.
        """
        self._tensors = _unwrap(_torch_load(path), path)
        self._specs = {
            name: _tensor_spec(self._tensors[name], name, path)
            for name in self._tensors
        }

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

    def spec(self, name: str) -> Spec:
        """Return shape and dtype of an array without reading it."""
        return self._specs[name]


def _tensor_spec(tensor: Any, name: str, path: pathlib.Path) -> Spec:
    import torch

    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES.values() or tensor.layout != torch.strided:
        raise SourceError(
            f"{name} in {path} is a {tensor.layout} tensor of {dtype}; supported are "
            f"dense tensors of {', '.join(DTYPES.values())}"
        )
    return tuple(tensor.shape), np.dtype(dtype)


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
            f"unpickling such a file may run code ({_describe(error)})"
        ) from error
    except Exception as error:  # a damaged file raises almost any class
        raise SourceError(
            f"{path} is not a complete torch file: {_describe(error)}"
        ) from error


def _describe(error: Exception) -> str:
    """Return the start of the first line of an error, or its type."""
    return first_line(error)[:200] or type(error).__name__


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
    for key, value in content.items():
        nested = value.values() if isinstance(value, Mapping) else value
        is_group = isinstance(value, Mapping | list | tuple)
        if is_group and any(isinstance(item, torch.Tensor) for item in nested):
            raise SourceError(f"{path} holds arrays inside {key!r}, which are not read")
        if key in tensors and not isinstance(key, str):
            raise SourceError(f"{path} holds an array by the name {key!r}, no string")
    if not tensors:
        keys = ", ".join(map(str, content)) or "none"
        raise SourceError(f"{path} holds no arrays; its keys are: {keys}")
    return tensors
