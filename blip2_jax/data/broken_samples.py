"""Broken samples, counted by cause; too many of them end a run."""

from __future__ import annotations

import collections
from collections.abc import Iterable

# Shares of fewer samples than this mean little.
_GRACE = 500
_SHOWN = 3


class TooManyBrokenSamples(RuntimeError):
    """The data is not usable as it is; the message lists causes and keys."""


class BrokenSampleStats:
    """Counts of broken samples by cause, with the first keys of each."""

    def __init__(self, max_share: float = 1.0):
        self.counts: collections.Counter[str] = collections.Counter()
        self.samples = 0
        self._max_share = max_share
        self._keys: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, samples: int, broken: Iterable[tuple[str, str]]) -> None:
        """Count samples that were wanted, and those (cause, key) that were broken.

        Raises:
          TooManyBrokenSamples: their share is above the limit, of the samples seen so far
            (counted as at least 500).
        """
        self.samples += samples
        for cause, key in broken:
            self.counts[cause] += 1
            if len(self._keys[cause]) < _SHOWN:
                self._keys[cause].append(key)
        if self.counts.total() > self._max_share * max(self.samples, _GRACE):
            raise self.error()

    def error(self) -> TooManyBrokenSamples:
        """The error that says so."""
        return TooManyBrokenSamples(
            f"{self.counts.total()} of the first {self.samples} samples are broken, "
            f"the limit is a share of {self._max_share:g} (data.max_broken_share): "
            f"{self}"
        )

    def __str__(self) -> str:
        """`12 missing image (a.jpg, b.jpg, c.jpg, ...); 1 empty caption (d.jpg)`."""
        return "; ".join(
            f"{count} {cause} ({', '.join(self._keys[cause])}"
            f"{', ...' if count > len(self._keys[cause]) else ''})"
            for cause, count in self.counts.most_common()
        )
