"""A selection of many elements that takes one bit per element."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from numpy import ndarray as Array

_BLOCK = 4096  # elements; a lookup unpacks one block


class BitSelection:
    """The indices of the true elements of a mask, in their order.

    A list of the indices would take 40 times the memory, in every worker process.

    Args:
      mask: the elements that are selected.
    """

    def __init__(self, mask: Bool[Array, " elements"]):
        self._bits = np.packbits(mask)
        starts = np.arange(0, len(mask), _BLOCK)
        counts = np.add.reduceat(mask, starts, dtype=np.int64)
        self._before = np.concatenate([[0], np.cumsum(counts)])  # each block

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getitem__(self, number: int) -> int:
        """Return the index of the selected element `number`, from 0.

        Raises:
          IndexError: there are fewer.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"element {number} of {len(self)}")
        block = int(np.searchsorted(self._before, number, side="right")) - 1
        size = _BLOCK // 8
        selected = np.unpackbits(self._bits[block * size : (block + 1) * size])
        return block * _BLOCK + int(
            np.flatnonzero(selected)[number - self._before[block]]
        )
