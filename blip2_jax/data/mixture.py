"""A weighted mixture of sources, random access by position."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from blip2_jax.data.order import shuffled_index
from blip2_jax.data.sources.base import Source
from blip2_jax.data.sources.registry import build_source

logger = logging.getLogger(__name__)

_PERIOD = 16384  # positions after which the pattern of sources repeats
_MAX_IMAGES = 2**31


@dataclasses.dataclass(frozen=True)
class SourceDraw:
    """A draw from a source.

    Attributes:
      source: index of the source in the mixture.
      ordinal: number of earlier draws from this source.
    """

    source: int
    ordinal: int


class Mixture:
    """Sources and their shares.

    Attributes:
      sources: the sources.
      shares: each source's share of all positions.
      image_id_offsets: offset of each source's image ids that makes them unique.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None):
        """Mix sources by weights.

        Args:
          sources: the sources.
          weights: relative weights; None weights each source by its size.

        Raises:
          ValueError: a source is empty, has too small a share, or there are too many
            images.
        """
        for source in sources:
            if not len(source):
                raise ValueError(f"source {source.name} is empty")
        sizes = [source.num_images for source in sources]
        if sum(sizes) >= _MAX_IMAGES:
            raise ValueError(f"{sum(sizes)} images exceed 32-bit ids (2^31 - 1)")
        self.sources = tuple(sources)
        self.image_id_offsets = tuple(int(n) for n in np.cumsum([0, *sizes[:-1]]))
        weights = [len(source) for source in sources] if weights is None else weights
        self.shares = tuple(float(weight) / sum(weights) for weight in weights)
        self._pattern, self._counts = _interleave(self.shares)
        for source, per_period in zip(sources, self._counts[-1], strict=True):
            if not per_period:
                raise ValueError(
                    f"source {source.name} has a share below 1/{_PERIOD}: "
                    "raise its weight or leave it out"
                )

    def locate(self, position: int) -> SourceDraw:
        """Return the source of a global position and the ordinal of its draw."""
        period, slot = divmod(position, _PERIOD)
        source = int(self._pattern[slot])
        per_period, in_period = self._counts[-1, source], self._counts[slot, source]
        return SourceDraw(source, period * int(per_period) + int(in_period))

    def rows_before(self, position: int) -> tuple[int, ...]:
        """Return the number of draws from each source before a global position."""
        periods, slot = divmod(position, _PERIOD)
        return tuple(
            periods * int(per_period) + int(in_period)
            for per_period, in_period in zip(
                self._counts[-1], self._counts[slot], strict=True
            )
        )

    def record_index(self, draw: SourceDraw, seed: int) -> int:
        """Return the record index of a draw; groups of a source stay together."""
        source = self.sources[draw.source]
        size = source.group_size
        group, member = divmod(draw.ordinal, size)
        count = len(source) // size
        group = shuffled_index(group, count, seed=seed, source=draw.source)
        return group * size + member

    def fingerprint(self) -> list[dict[str, object]]:
        """Return the fingerprints and shares of the sources, stored with a run."""
        return [
            {**source.fingerprint(), "share": share}
            for source, share in zip(self.sources, self.shares, strict=True)
        ]


def build_mixture(specs: Sequence[Mapping[str, Any]]) -> Mixture:
    """Build sources from their specs; each may have a "weight".

    Raises:
      ValueError: there is no source, or only some of them have a weight.
    """
    if not specs:
        raise ValueError("the data configuration has no source")
    weights = [spec["weight"] for spec in specs if "weight" in spec]
    if weights and len(weights) != len(specs):
        raise ValueError("either all sources need a weight, or none (weights by size)")
    if any(weight <= 0 for weight in weights):
        raise ValueError(f"weights of sources must be positive, not {weights}")
    sources = [build_source(spec) for spec in specs]
    for source in sources:
        if source.left_out:
            listing = ", ".join(
                f"{n} {reason}" for reason, n in source.left_out.items()
            )
            logger.warning("%s leaves out %s", source.name, listing)
    return Mixture(sources, weights or None)


def short_names(sources: Sequence[Source]) -> list[str]:
    """Return a short name for each source, for logs.

    It is the last directory or file that the source's path names: "cc3m" for
    "tars:data/cc3m/*.tar". Equal names are numbered.
    """
    names: list[str] = []
    for source in sources:
        name = _last_part(source.name)
        same = sum(other.partition(" (")[0] == name for other in names)
        names.append(f"{name} ({same + 1})" if same else name)
    return names


def _last_part(name: str) -> str:
    """Return the last part of a source's path that is no pattern, without suffix."""
    path = pathlib.PurePosixPath(name.partition(":")[2].partition(",")[0])
    parts = [part for part in path.parts if not set("*?[") & set(part)]
    if (len(path.parts) < 2 and not path.suffix) or not parts:
        return name  # no path, e.g. "shapes:train"
    return pathlib.PurePosixPath(parts[-1]).stem


def _interleave(shares: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Interleave sources: each slot goes to the source furthest behind its share.

    Returns:
      The source of every slot, [_PERIOD], and each source's number of slots before
      every slot, [_PERIOD + 1, sources].
    """
    target = np.asarray(shares)
    pattern = np.zeros(_PERIOD, np.int32)
    counts = np.zeros((_PERIOD + 1, len(target)), np.int64)
    if len(target) > 1:
        for slot in range(_PERIOD):
            pattern[slot] = np.argmax(target * (slot + 1) - counts[slot])
            counts[slot + 1] = counts[slot]
            counts[slot + 1, pattern[slot]] += 1
    else:
        counts[:, 0] = np.arange(_PERIOD + 1)
    return pattern, counts
