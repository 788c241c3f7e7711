"""torch's pickled files, written without holding all they contain.

`torch.save` wants every tensor at once. So large arrays are written to scratch files
first, and given to it as tensors that are maps of these files: what it reads of them
is cache, which the system takes back when it needs the memory.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from blip2_jax.convert.files.atomic_output import cast
from blip2_jax.convert.tables.name_table import Array

SMALL = 2**20  # bytes; arrays below are kept in memory


def save(
    arrays: Iterable[tuple[str, Array]], file: pathlib.Path, dtype: str | None = None
) -> None:
    """Write `{"model": {name: tensor}}`, as LAVIS does.

    Args:
      arrays: made one by one. One object under several names in a row is stored once.
      dtype: of all floating arrays; None keeps each one's own.
      file: beside it there must be room for a second copy while this runs.

    Raises:
      ImportError: torch is not installed.
    """
    import torch

    tensors: dict[str, Any] = {}
    last: tuple[Array | None, Any] = None, None
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=file.name) as scratch:
        for number, (name, array) in enumerate(arrays):
            if array is not last[0]:
                place = pathlib.Path(scratch) / str(number)
                last = array, _tensor(cast(np.asarray(array), dtype), place)
            tensors[name] = last[1]
        torch.save({"model": tensors}, file)


def _tensor(array: np.ndarray, place: pathlib.Path) -> Any:
    """A torch tensor of the same bits, mapped from `place` unless it is small."""
    import torch

    bits = array.view(np.int16) if array.dtype == ml_dtypes.bfloat16 else array
    if array.nbytes < SMALL:
        tensor = torch.from_numpy(np.require(bits, requirements=["C", "W"]))
    else:
        bits.tofile(place)
        dtype = torch.from_numpy(np.empty(0, bits.dtype)).dtype
        flat = torch.from_file(str(place), shared=True, size=bits.size, dtype=dtype)
        tensor = flat.reshape(bits.shape)
    return tensor.view(torch.bfloat16) if array.dtype == ml_dtypes.bfloat16 else tensor
