"""A weighted mixture of sources whose every position is a pure function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from blip2_jax.data.order import shuffled_index
from blip2_jax.data.sources.base import Source
from blip2_jax.data.sources.registry import build_source

# Positions repeat their pattern of sources after so many; the finest share.
_PERIOD = 16384
_MAX_IMAGES = 2**31


@dataclasses.dataclass(frozen=True)
class SourceDraw:
    """Where a position points: `sources[source]` at its `ordinal`-th draw."""

    source: int
    ordinal: int


class Mixture:
    """Sources and their shares.

    Attributes:
      sources: the sources, in the order given.
      shares: of every position's draws, the share of each source.
      image_id_offsets: added to a source's image ids, they are unique across sources.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None):
        """Weights None: every image of every source equally often."""
        for source in sources:
            if not len(source):
                raise ValueError(f"source {source.name} is empty")
        sizes = [source.num_images for source in sources]
        if sum(sizes) >= _MAX_IMAGES:
            raise ValueError(f"{sum(sizes)} images: ids of 32 bits hold 2^31 - 1")
        self.sources = tuple(sources)
        self.image_id_offsets = tuple(int(n) for n in np.cumsum([0, *sizes[:-1]]))
        given = [len(source) for source in sources] if weights is None else weights
        self.shares = tuple(float(weight) / sum(given) for weight in given)
        self._pattern, self._counts = _interleave(self.shares)
        for source, per_period in zip(sources, self._counts[-1], strict=True):
            if not per_period:
                raise ValueError(
                    f"source {source.name} has a share below 1/{_PERIOD}: "
                    "raise its weight or leave it out"
                )

    def locate(self, position: int) -> SourceDraw:
        """The source of a global position, and how often it was drawn before."""
        period, slot = divmod(position, _PERIOD)
        source = int(self._pattern[slot])
        before = period * int(self._counts[-1, source]) + int(
            self._counts[slot, source]
        )
        return SourceDraw(source, before)

    def record_index(self, draw: SourceDraw, seed: int) -> int:
        """The record that a place shows; a source's groups stay together."""
        source = self.sources[draw.source]
        size = source.group_size
        group, member = divmod(draw.ordinal, size)
        count = len(source) // size
        group = shuffled_index(group, count, seed=seed, source=draw.source)
        return group * size + member

    def fingerprint(self) -> list[dict[str, object]]:
        """What a run writes down of its data."""
        return [
            {**source.fingerprint(), "share": share}
            for source, share in zip(self.sources, self.shares, strict=True)
        ]


def build_mixture(specs: Sequence[Mapping[str, Any]]) -> Mixture:
    """Build sources from their specs; each may have a "weight".

    Raises:
      ValueError: no source, or some have a weight and some have none.
    """
    if not specs:
        raise ValueError("no source of data is named")
    weights = [spec["weight"] for spec in specs if "weight" in spec]
    if weights and len(weights) != len(specs):
        raise ValueError("give every source a weight, or none (then by size)")
    if any(weight <= 0 for weight in weights):
        raise ValueError(f"weights of sources must be positive, not {weights}")
    return Mixture([build_source(spec) for spec in specs], weights or None)


def _interleave(shares: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Spread sources evenly: each slot goes to the source most behind its share.

    Returns:
      The source of every slot [_PERIOD], and counts [_PERIOD + 1, sources] of the
      slots before each.
    """
    wanted = np.asarray(shares)
    pattern = np.zeros(_PERIOD, np.int32)
    counts = np.zeros((_PERIOD + 1, len(wanted)), np.int64)
    if len(wanted) > 1:
        for slot in range(_PERIOD):
            pattern[slot] = np.argmax(wanted * (slot + 1) - counts[slot])
            counts[slot + 1] = counts[slot]
            counts[slot + 1, pattern[slot]] += 1
    else:
        counts[:, 0] = np.arange(_PERIOD + 1)
    return pattern, counts
