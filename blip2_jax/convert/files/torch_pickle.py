"""Writer of torch's pickled files that does not hold all arrays in memory.

`torch.save` takes all tensors at once. Large arrays are therefore written to scratch
files first and passed as memory maps of these files; the operating system can drop
their pages when it needs the memory.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from blip2_jax.convert.files.output import cast, os_error
from blip2_jax.convert.tables.name_table import Array

SMALL = 2**20  # bytes; smaller arrays stay in memory


def save(
    arrays: Iterable[tuple[str, Array]], file: pathlib.Path, dtype: str | None = None
) -> None:
    """Write `{"model": {name: tensor}}`, as LAVIS does.

    Args:
      arrays: names and arrays, made one by one. An object that is repeated under
        several names in a row is stored once.
      file: the file to write. While this runs, its folder holds a second copy.
      dtype: of all floating-point arrays; None keeps each one's own.

    Raises:
      ImportError: torch is not installed.
    """
    import torch

    tensors: dict[str, Any] = {}
    previous: Array | None = None
    tensor: Any = None
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=file.name) as scratch:
        for number, (name, array) in enumerate(arrays):
            if array is not previous:
                path = pathlib.Path(scratch) / str(number)
                tensor = _tensor(cast(np.asarray(array), dtype), path)
                previous = array
            tensors[name] = tensor
        try:
            torch.save({"model": tensors}, file)
        except RuntimeError as error:  # its class for what the system reports
            raise os_error(error) from error


def _tensor(array: np.ndarray, path: pathlib.Path) -> Any:
    """Return a torch tensor of the same bits, mapped from `path` unless it is small."""
    import torch

    bits = array.view(np.int16) if array.dtype == ml_dtypes.bfloat16 else array
    if array.nbytes < SMALL:
        tensor = torch.from_numpy(np.require(bits, requirements=["C", "W"]))
    else:
        bits.tofile(path)
        dtype = torch.from_numpy(np.empty(0, bits.dtype)).dtype
        flat = torch.from_file(str(path), shared=True, size=bits.size, dtype=dtype)
        tensor = flat.reshape(bits.shape)
    return tensor.view(torch.bfloat16) if array.dtype == ml_dtypes.bfloat16 else tensor
