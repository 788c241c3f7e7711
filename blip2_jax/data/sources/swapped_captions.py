"""A source with wrong captions, to measure what noise in the data costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from blip2_jax.data.sources.base import Record
from blip2_jax.data.sources.reading import read_record
from blip2_jax.data.sources.selection import SelectionSource


class SwappedCaptions(SelectionSource):
    """The records of a source, some of which have the captions of another one.

    Args:
      of: spec of the source.
      share: share of the records whose captions are swapped.
      seed: seed of the choice.

    Raises:
      ValueError: the share is not between 0 and 1, or leaves a single record.
    """

    def __init__(self, of: Mapping[str, Any], share: float = 0.3, seed: int = 0):
        super().__init__(of)
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1, not {share}")
        self.name = f"{share:g} swapped captions of {self._of.name}"
        self.group_size = self._of.group_size
        count = round(share * len(self._of))
        if count == 1:
            raise ValueError(f"share {share} selects one record, which has no partner")
        chosen = np.random.default_rng(seed).permutation(len(self._of))[:count]
        # Each takes the captions of the next one, so that none keeps its own.
        self._partner = dict(
            zip(chosen.tolist(), np.roll(chosen, -1).tolist(), strict=True)
        )

    def __len__(self) -> int:
        return len(self._of)

    @property
    def num_images(self) -> int:
        """Number of images; see `Source`."""
        return self._of.num_images

    def keys(self) -> list[str]:
        """List the keys of all records."""
        return self._of.keys()

    def is_swapped(self, index: int) -> bool:
        """Return True if a record has the captions of another one."""
        return index in self._partner

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        record = read_record(self._of, index)
        if index not in self._partner:
            return record
        other = read_record(self._of, self._partner[index])
        return dataclasses.replace(record, captions=other.captions)

    def _index(self, index: int) -> int:
        return index
