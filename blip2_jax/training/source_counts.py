"""How many rows of each data source a run has read, and how many were broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

_PREFIX = "source/"


class SourceCount(NamedTuple):
    """Counts of a source since the first step of a run.

    Attributes:
      name: short name of the source.
      rows: rows of batches.
      broken: broken samples; each was replaced by another one of the source.
    """

    name: str
    rows: int
    broken: int


def count_sources(
    names: Sequence[str],
    rows: Sequence[int],
    broken_before: Sequence[int],
    broken: Sequence[int],
) -> list[SourceCount]:
    """Join the counts of every source.

    Args:
      names: names of the sources.
      rows: rows of each source.
      broken_before: broken samples before the process started.
      broken: broken samples since then.
    """
    return [
        SourceCount(name, count, before + since)
        for name, count, before, since in zip(
            names, rows, broken_before, broken, strict=True
        )
    ]


def as_metrics(counts: Sequence[SourceCount]) -> dict[str, float]:
    """Return counts as metrics "source/NAME/rows" and "source/NAME/broken"."""
    metrics: dict[str, float] = {}
    for count in counts:
        metrics[f"{_PREFIX}{count.name}/rows"] = float(count.rows)
        metrics[f"{_PREFIX}{count.name}/broken"] = float(count.broken)
    return metrics


def from_metrics(values: Mapping[str, float]) -> list[SourceCount]:
    """Return the counts that `as_metrics` has put into metrics."""
    names = [
        name.removeprefix(_PREFIX).removesuffix("/rows")
        for name in values
        if name.startswith(_PREFIX) and name.endswith("/rows")
    ]
    return [
        SourceCount(
            name,
            int(values[f"{_PREFIX}{name}/rows"]),
            int(values[f"{_PREFIX}{name}/broken"]),
        )
        for name in names
    ]


def describe(counts: Sequence[SourceCount]) -> str:
    """Format as "coco 1,200 (3 broken), cc3m 5,000"."""
    return ", ".join(
        f"{count.name} {count.rows:,}"
        + (f" ({count.broken:,} broken)" if count.broken else "")
        for count in counts
    )
