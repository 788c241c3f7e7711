"""Records of several evaluations side by side: scores, intervals, paired differences.

Records of one task over the same data (by digest) belong together; the others of such
a group are compared with its first.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from blip2_jax.evaluation.examples import Example, read_examples, statistics_of
from blip2_jax.metrics.bootstrap import Difference, differences


@dataclasses.dataclass(frozen=True)
class Entry:
    """A record with its examples; `name` is its column's head."""

    name: str
    record: dict[str, Any]
    examples: list[Example]


@dataclasses.dataclass(frozen=True)
class Group:
    """Entries of one task over the same data."""

    task: str
    entries: list[Entry]

    @property
    def title(self) -> str:
        """What was evaluated on what."""
        record = self.entries[0].record
        units: dict[str, int] = {}
        for example in self.entries[0].examples:
            units[example["unit"]] = units.get(example["unit"], 0) + 1
        counted = ", ".join(f"{count} {unit}s" for unit, count in units.items())
        return f"{self.task}: {counted} (data {record['digests']['data'][:8]})"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of a row names it."""

    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As a Markdown table."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        cells = ([text.replace("|", "\\|") for text in line] for line in lines)
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def read_entries(paths: Sequence[pathlib.Path]) -> list[Entry]:
    """The records at some paths, with their examples.

    Raises:
      FileNotFoundError: a record, or the examples beside it, is not there.
      ValueError: a file is no record of `launch/evaluate.py`.
    """
    records = [_record(path) for path in paths]
    titles = [record["title"] for record in records]
    names = [
        title if titles.count(title) == 1 else f"{title} ({path})"
        for title, path in zip(titles, paths, strict=True)
    ]
    return [
        Entry(name, record, read_examples(path.with_suffix(".examples.jsonl")))
        for name, record, path in zip(names, records, paths, strict=True)
    ]


def _record(path: pathlib.Path) -> dict[str, Any]:
    for file in (path, path.with_suffix(".examples.jsonl")):
        if not file.is_file():
            raise FileNotFoundError(f"no file {str(file)!r}")
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    needed = {"title", "scores", "digests"}
    if not isinstance(record, dict) or not needed <= set(record):
        raise ValueError(f"{path} is no record of launch/evaluate.py")
    return record


def groups_of(entries: Sequence[Entry]) -> list[Group]:
    """What can be compared, in the order of first appearance."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        key = entry.record["task"], entry.record["digests"]["data"]
        groups.setdefault(key, []).append(entry)
    return [Group(task, found) for (task, _), found in groups.items()]


def score_table(group: Group) -> Table:
    """A row for each score: the entries' with their intervals, and the paper's."""
    entries = group.entries
    papers = [each for each in entries if each.record["settings"]["paper"]]
    names = dict.fromkeys(name for e in entries for name in e.record["scores"])
    names |= dict.fromkeys(n for e in papers for n in e.record["settings"]["paper"])
    rows = []
    for name in names:
        row = [name, *(_score(entry.record, name) for entry in entries)]
        for entry in papers:
            value = entry.record["settings"]["paper"].get(name)
            row.append("" if value is None else f"{value:g}")
        rows.append(row)
    heads = [each.name for each in entries] + [f"paper: {each.name}" for each in papers]
    return Table(["", *heads], rows)


def _score(record: dict[str, Any], name: str) -> str:
    if name not in record["scores"]:
        return ""
    text = f"{record['scores'][name]:.2f}"
    interval = record.get("intervals", {}).get(name)
    if interval is None:
        return text
    return f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]"


def difference_table(group: Group) -> Table | str:
    """Each entry less the first, on the same examples; else why there is none."""
    first, *others = group.entries
    if not others:
        return ""
    reference = statistics_of(first.examples)
    try:
        found = [differences(reference, statistics_of(o.examples)) for o in others]
    except ValueError as error:
        return f"No paired differences: {error}."
    names = [name for name in first.record["scores"] if all(name in f for f in found)]
    rows = [[name, *(_difference(each[name]) for each in found)] for name in names]
    return Table(["", *(f"{each.name} less {first.name}" for each in others)], rows)


def _difference(found: Difference) -> str:
    low, high = found.interval
    return f"{found.value:+.2f} [{low:+.2f}, {high:+.2f}], p {found.crossing:.3f}"


def notes_of(group: Group) -> list[str]:
    """What each record says beside its scores."""
    notes = []
    for entry in group.entries:
        record = entry.record
        lines = record["notice"].splitlines()
        if record["broken"]:
            lines.append(f"broken: {record['broken']}")
        lines.append(
            f"model {record['digests']['model'][:8]}, {record['device']}, "
            f"{record['processes']} processes, {record['seconds']:g} s, "
            f"{record['date']}"
        )
        notes += [f"{entry.name}: {line}" for line in lines]
    return notes


DRAWN_AGAIN = (
    "In brackets the interval that holds 95 % of draws of as many examples with "
    "replacement; p is twice the share of draws on the rarer side of zero."
)


def as_markdown(groups: Sequence[Group], insights: dict[str, Table]) -> str:
    """The report without its pictures.

    Args:
      groups: what to report.
      insights: further tables by their titles.
    """
    parts = ["# Evaluations", DRAWN_AGAIN]
    for group in groups:
        parts += [f"## {group.title}", score_table(group).markdown()]
        paired = difference_table(group)
        if paired:
            parts.append(paired if isinstance(paired, str) else paired.markdown())
        parts.append("\n".join(f"- {line}" for line in notes_of(group)))
    for title, table in insights.items():
        parts += [f"## {title}", table.markdown()]
    return "\n\n".join(parts) + "\n"
