"""Counts of CapFilt: what a shard's report holds, and the sum over shards."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from blip2_jax.capfilt.candidates import (
    GENERATED,
    ORIGINS,
    WEB,
    RankedCaptions,
    count_empty,
)
from blip2_jax.data.sources.base import BrokenSample

BINS_PER_UNIT = 100  # of the histograms of scores: bins of 0.01
MAX_PLACES = 20  # broken images that a sum over shards names

Counter = collections.Counter[str]


def _by_origin() -> dict[str, Counter]:
    return {origin: collections.Counter() for origin in ORIGINS}


@dataclasses.dataclass
class CapFiltCounts:
    """Counts over images, and over captions by origin.

    Attributes:
      images: images that are written, with a caption at least.
      without_captions: images that are left out because they have no caption.
      broken: broken images by cause, which are left out too.
      broken_places: the cause and the key of every broken image; in the sum over
        shards, of the first ones.
      captions: by origin: "all", "merged" (into an earlier one), "empty", "kept", and
        "best" of their image.
      histograms: by origin: number of scores by bin; bin n holds scores from n/100
        to (n + 1)/100.
    """

    images: int = 0
    without_captions: int = 0
    broken: Counter = dataclasses.field(default_factory=collections.Counter)
    broken_places: list[str] = dataclasses.field(default_factory=list)
    captions: dict[str, Counter] = dataclasses.field(default_factory=_by_origin)
    histograms: dict[str, Counter] = dataclasses.field(default_factory=_by_origin)

    @property
    def records(self) -> int:
        """Number of all records, those that are left out included."""
        return self.images + self.without_captions + self.broken.total()

    def add_broken(self, error: BrokenSample) -> None:
        """Count a broken image."""
        self.broken[error.cause] += 1
        self.broken_places.append(str(error))

    def add_empty(self, web: Iterable[str], generated: Iterable[str]) -> None:
        """Count the empty captions of an image."""
        for origin, captions in ((WEB, web), (GENERATED, generated)):
            self.captions[origin]["empty"] += count_empty(captions)

    def add_image(self, ranked: RankedCaptions) -> None:
        """Count an image that is written, and its captions."""
        self.images += 1
        scored = zip(ranked.candidates, ranked.scores, strict=True)
        for index, (candidate, score) in enumerate(scored):
            counts = self.captions[candidate.origin]
            counts["all"] += 1
            counts["merged"] += candidate.times - 1
            counts["kept"] += index in ranked.kept
            counts["best"] += index == ranked.kept[0]
            bin_ = str(math.floor(score * BINS_PER_UNIT))
            self.histograms[candidate.origin][bin_] += 1

    def as_json(self) -> dict[str, Any]:
        """Return the counts as the content of a report."""
        return {
            "images": self.images,
            "without_captions": self.without_captions,
            "broken": dict(self.broken),
            "broken_places": self.broken_places,
            "captions": {name: dict(each) for name, each in self.captions.items()},
            "histograms": {name: dict(each) for name, each in self.histograms.items()},
        }


def sum_counts(reports: Iterable[Mapping[str, Any]]) -> CapFiltCounts:
    """Add up the reports of shards."""
    total = CapFiltCounts()
    for report in reports:
        total.images += report["images"]
        total.without_captions += report["without_captions"]
        total.broken.update(report["broken"])
        room = MAX_PLACES - len(total.broken_places)
        total.broken_places += report["broken_places"][:room]
        for origin in ORIGINS:
            total.captions[origin].update(report["captions"][origin])
            total.histograms[origin].update(report["histograms"][origin])
    return total
