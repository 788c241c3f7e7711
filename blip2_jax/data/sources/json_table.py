"""Captions in JSON: a list of objects or one object per line, or captions by file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from blip2_jax.data.sources.table_source import Table, TableSource
from blip2_jax.parallel.files import json_lines, read_text

LINES_SUFFIXES = (".jsonl", ".ndjson")
_ROWS_FOR_NAMES = 100  # rows whose keys are the columns: a row may lack some


class JsonSource(TableSource):
    """Images with captions or questions from objects in JSON; see `TableSource`.

    The file holds a list of objects, an object whose only list is that, or one object
    per line.
    """

    kind = "json"
    title = "JSON objects"

    @classmethod
    def read_table(cls, path: str) -> Table:
        """Read the objects of a file; see `TableSource`."""
        text = read_text(path)
        if has_lines(path, text):
            lines = ((number, _parse_line(line)) for number, line in json_lines(text))
            return _table(lines, "line")
        return _table(enumerate(_list_of_objects(_parse(text, path), path), 1), "row")


class CaptionsByFileSource(TableSource):
    """Images with captions from `{file: caption}` or `{file: [caption, ...]}` in JSON.

    See `TableSource`; the columns are "file" and "caption".
    """

    kind = "captions_by_file"
    title = "captions by file"

    @classmethod
    def read_table(cls, path: str) -> Table:
        """Read the pairs of a file; see `TableSource`."""
        # Pairs instead of a dict, which would keep only the last of equal names.
        pairs = _parse(read_text(path), path, list)
        if not isinstance(pairs, list):
            raise ValueError(f"{path} is not a JSON object of captions by file")
        rows = (
            (number, {"file": pair[0], "caption": pair[1]})
            if isinstance(pair, tuple)
            else (number, pair)
            for number, pair in enumerate(pairs, 1)
        )
        return Table(["file", "caption"], rows, "entry")


def has_lines(path: str, text: str) -> bool:
    """Return True if a file holds one object per line, whatever its suffix says."""
    if path.endswith(LINES_SUFFIXES):
        return True
    lines = itertools.islice(json_lines(text), 2)
    values = [_parse_line(line) for _, line in lines]
    return len(values) > 1 and all(isinstance(value, dict) for value in values)


def _parse(text: str, path: str, pairs: Any = None) -> Any:
    """Parse the text of a JSON file; `pairs` makes an object of its pairs."""
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None


def _parse_line(line: str) -> Any:
    """Parse a line, or return its error."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON: {error}")


def _list_of_objects(content: Any, path: str) -> list[Any]:
    """Return the list of rows in a JSON file."""
    if isinstance(content, list):
        return content
    values = content.values() if isinstance(content, dict) else ()
    lists = [value for value in values if isinstance(value, list)]
    if len(lists) != 1:
        raise ValueError(f"{path} is neither a list of objects nor an object with one")
    return lists[0]


def _table(rows: Iterator[tuple[int, Any]], unit: str) -> Table:
    """Make a table whose columns are the keys of the first objects."""
    first = list(itertools.islice(rows, _ROWS_FOR_NAMES))
    objects = (values for _, values in first if isinstance(values, Mapping))
    names = list(dict.fromkeys(name for values in objects for name in values))
    return Table(names, itertools.chain(first, rows), unit)
