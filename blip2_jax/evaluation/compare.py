"""Comparison of evaluations: scores with intervals, and paired differences.

Records of one task over the same data (by digest) form a group; all entries of a group
are compared with its first.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from blip2_jax.evaluation.examples import Example, example_statistics, read_examples
from blip2_jax.metrics.bootstrap import Difference, differences
from blip2_jax.parallel.files import read_json

# What a report reads of a record.
_RECORD_KEYS = (
    "task",
    "title",
    "scores",
    "notice",
    "broken",
    "digests.model",
    "digests.data",
    "settings.data",
    "settings.paper",
    "device",
    "processes",
    "seconds",
    "date",
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A record with its examples, and its path; `name` heads its column."""

    name: str
    record: dict[str, Any]
    examples: list[Example]
    path: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Entries of one task over the same data."""

    task: str
    entries: list[Entry]

    @property
    def title(self) -> str:
        """The task, the number of examples and the digest of the data."""
        record = self.entries[0].record
        units: dict[str, int] = {}
        for example in self.entries[0].examples:
            units[example["unit"]] = units.get(example["unit"], 0) + 1
        counts = ", ".join(f"{count} {unit}s" for unit, count in units.items())
        return f"{self.task}: {counts} (data {record['digests']['data'][:8]})"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of strings; the first cell of a row is its label."""

    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Format the table as Markdown."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        cells = (map(markdown_text, line) for line in lines)
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def markdown_text(text: str) -> str:
    """Return text for one line or cell of Markdown, which may contain HTML."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")


def read_entries(paths: Sequence[pathlib.Path]) -> list[Entry]:
    """Read records and the examples beside them.

    Raises:
      FileNotFoundError: a record or its examples are missing.
      ValueError: a file is no record of `blip2-jax evaluate`.
    """
    records = [_read_record(path) for path in paths]
    return rename_entries(
        [
            Entry(
                record["title"],
                record,
                read_examples(path.with_suffix(".examples.jsonl")),
                str(path),
            )
            for record, path in zip(records, paths, strict=True)
        ]
    )


def rename_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Add the paths of records to the names that several of them have."""
    names = [entry.name for entry in entries]
    return [
        dataclasses.replace(entry, name=f"{entry.name} ({entry.path})")
        if names.count(entry.name) > 1
        else entry
        for entry in entries
    ]


def _read_record(path: pathlib.Path) -> dict[str, Any]:
    for file in (path, path.with_suffix(".examples.jsonl")):
        if not file.is_file():
            raise FileNotFoundError(f"no file {str(file)!r}")
    record = read_json(path)
    missing = [key for key in _RECORD_KEYS if not _has_key(record, key)]
    if missing:
        raise ValueError(
            f"{path} is no record of `blip2-jax evaluate`: it lacks "
            f"{', '.join(missing)}"
        )
    return record


def _has_key(record: Any, key: str) -> bool:
    """Return True if a nested dict has a key such as "digests.data"."""
    for name in key.split("."):
        if not isinstance(record, dict) or name not in record:
            return False
        record = record[name]
    return True


def group_entries(entries: Sequence[Entry]) -> list[Group]:
    """Group entries that can be compared, in the order of their first appearance."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        key = entry.record["task"], entry.record["digests"]["data"]
        groups.setdefault(key, []).append(entry)
    return [Group(task, members) for (task, _), members in groups.items()]


def score_table(group: Group) -> Table:
    """Tabulate scores with intervals, and the paper's scores; one row per score."""
    entries = group.entries
    with_paper = [entry for entry in entries if entry.record["settings"]["paper"]]
    names = dict.fromkeys(name for e in entries for name in e.record["scores"])
    names |= dict.fromkeys(
        name for e in with_paper for name in e.record["settings"]["paper"]
    )
    rows = []
    for name in names:
        row = [name, *(_format_score(entry.record, name) for entry in entries)]
        for entry in with_paper:
            value = entry.record["settings"]["paper"].get(name)
            row.append("" if value is None else f"{value:g}")
        rows.append(row)
    paper_heads = [f"paper: {entry.name}" for entry in with_paper]
    return Table(["", *(entry.name for entry in entries), *paper_heads], rows)


def _format_score(record: dict[str, Any], name: str) -> str:
    if name not in record["scores"]:
        return ""
    text = f"{record['scores'][name]:.2f}"
    interval = record.get("intervals", {}).get(name)
    if interval is None:
        return text
    return f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]"


def difference_table(group: Group) -> Table | str:
    """Tabulate each entry minus the first, on the same examples.

    Returns:
      The table; a sentence if the examples differ; "" for a single entry.
    """
    first, *others = group.entries
    if not others:
        return ""
    reference = example_statistics(first.examples)
    try:
        columns = [
            differences(reference, example_statistics(entry.examples))
            for entry in others
        ]
    except ValueError as error:
        return f"No paired differences: {error}."
    names = [n for n in first.record["scores"] if all(n in col for col in columns)]
    rows = [[n, *(_format_difference(col[n]) for col in columns)] for n in names]
    return Table(["", *(f"{entry.name} less {first.name}" for entry in others)], rows)


def _format_difference(difference: Difference) -> str:
    low, high = difference.interval
    value, crossing = difference.value, difference.crossing
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}], p {crossing:.3f}"


def group_notes(group: Group) -> list[str]:
    """Return notices, broken samples, model and machine of every entry."""
    notes = []
    for entry in group.entries:
        record = entry.record
        lines = record["notice"].splitlines()
        if record["broken"] and "broken: " not in record["notice"]:
            lines.append(f"broken: {record['broken']}")
        lines.append(
            f"model {record['digests']['model'][:8]}, {record['device']}, "
            f"{record['processes']} processes, {record['seconds']:g} s, "
            f"{record['date']}"
        )
        notes += [f"{entry.name}: {line}" for line in lines]
    return notes
