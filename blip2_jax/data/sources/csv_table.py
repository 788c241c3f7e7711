"""Captions in a CSV or TSV file with a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from blip2_jax.data.sources.table_source import Table, TableSource
from blip2_jax.parallel.files import read_text

_DELIMITERS = ",\t;|"
_FIELD_LIMIT = 2**30  # characters; the csv module's default is 2^17


class CsvSource(TableSource):
    """Images with captions or questions from a CSV or TSV file; see `TableSource`.

    The first line names the columns. The delimiter is the one of comma, tab, semicolon
    and bar that is most frequent there. A cell with several captions is a JSON list.
    """

    kind = "csv"
    title = "CSV"

    @classmethod
    def read_table(cls, path: str) -> Table:
        """Read the rows of a file; see `TableSource`."""
        text = read_text(path)
        header = text.lstrip("\r\n").partition("\n")[0]
        delimiter = max(_DELIMITERS, key=header.count)
        csv.field_size_limit(_FIELD_LIMIT)
        # Strict: a quote that is not closed would swallow the rows behind it.
        lines = csv.reader(
            io.StringIO(text, newline=""),
            delimiter=delimiter,
            strict=True,
            skipinitialspace=True,
        )
        rows = _numbered_rows(lines)
        _, names = next(rows, (0, []))
        if isinstance(names, ValueError) or len(set(names)) != len(names):
            raise ValueError(f"the header of {path} is not valid: {header:.80}")
        names = [name.strip() for name in names]
        return Table(names, ((n, _by_name(names, cells)) for n, cells in rows), "line")


def _numbered_rows(lines: Any) -> Iterator[tuple[int, Any]]:
    """Yield each row's first line and its cells, or the error of an unreadable row."""
    while True:
        number = lines.line_num + 1
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, ValueError(str(error))
            continue
        if cells:  # not a blank line
            yield number, cells


def _by_name(names: list[str], cells: Any) -> Any:
    """Return the cells of a row by column, or its error."""
    if isinstance(cells, ValueError):
        return cells
    if len(cells) != len(names):
        return ValueError(f"{len(cells)} cells, the header has {len(names)}")
    return dict(zip(names, map(str.strip, cells), strict=True))
