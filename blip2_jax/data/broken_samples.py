"""Statistics of broken samples by cause; too many of them stop a run."""

from __future__ import annotations

import collections
from collections.abc import Iterable

MAX_BROKEN_SHARE = 0.01  # default limit of training and evaluation
_MIN_SAMPLES = 500  # the share of broken samples is too noisy below this
_MAX_KEYS = 3  # keys in messages, per cause


class TooManyBrokenSamples(RuntimeError):
    """Too many samples are broken; the message lists causes and keys."""


class BrokenSampleStats:
    """Counts of broken samples by cause, with the first keys of each.

    Attributes:
      counts: number of broken samples by cause.
      samples: number of all samples so far.
    """

    def __init__(self, max_share: float = 1.0):
        """Start counting; `max_share` is the allowed share of broken samples."""
        self.counts: collections.Counter[str] = collections.Counter()
        self.samples = 0
        self._max_share = max_share
        self._keys: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, samples: int, broken: Iterable[tuple[str, str]]) -> None:
        """Count samples, and the (cause, key) of those that are broken.

        Raises:
          TooManyBrokenSamples: the share of broken samples so far (of at least 500
            samples) exceeds the limit.
        """
        self.samples += samples
        for cause, key in broken:
            self.counts[cause] += 1
            if len(self._keys[cause]) < _MAX_KEYS:
                self._keys[cause].append(key)
        if self.counts.total() > self._max_share * max(self.samples, _MIN_SAMPLES):
            raise self.error()

    def error(self) -> TooManyBrokenSamples:
        """Return the error that reports the statistics."""
        return TooManyBrokenSamples(
            f"{self.counts.total()} of the first {self.samples} samples are broken, "
            f"the limit is a share of {self._max_share:g} (data.max_broken_share): "
            f"{self}"
        )

    def __str__(self) -> str:
        """Format as `12 missing image (a.jpg, b.jpg, ...); 1 no text (d.jpg)`."""
        return "; ".join(
            f"{count} {cause} ({', '.join(self._keys[cause])}"
            f"{', ...' if count > len(self._keys[cause]) else ''})"
            for cause, count in self.counts.most_common()
        )
