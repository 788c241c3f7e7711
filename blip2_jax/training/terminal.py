"""The terminal output of a run: a progress bar and aligned lines of metrics."""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import rich.console
import rich.progress

from blip2_jax.parallel.paths import is_remote
from blip2_jax.training import source_counts

Values = Mapping[str, float]

MAX_WIDTH = 120  # columns of the longest line
HEADER_EVERY = 20  # lines of metrics between two headers


class Column(NamedTuple):
    """A column of the table of metrics.

    Attributes:
      header: its short name.
      metrics: names in `metrics.jsonl`; the first one that a line has is shown.
      width: in characters.
      decimals: digits after the point.
      percent: show a share as a percentage.
    """

    header: str
    metrics: tuple[str, ...]
    width: int
    decimals: int
    percent: bool = False


COLUMNS = (
    Column("loss", ("loss",), 7, 3),
    Column("itc", ("loss_itc",), 6, 3),
    Column("itm", ("loss_itm",), 6, 3),
    Column("itg", ("loss_itg",), 6, 3),
    Column("acc", ("itm_accuracy", "accuracy"), 6, 1, percent=True),
    Column("temp", ("temperature",), 6, 4),
    Column("lr", ("learning_rate",), 7, 6),
    Column("grad", ("grad_norm",), 7, 3),
    Column("img/s/chip", ("images_per_second_per_chip",), 10, 1),
    Column("mfu", ("mfu",), 6, 1, percent=True),
    Column("wait", ("data_wait_share",), 6, 1, percent=True),
    Column("mem GB", ("peak_memory_gb",), 6, 1),
)


def format_number(value: float, width: int, decimals: int) -> str:
    """Format a number with fixed decimals, right-aligned.

    A number that is too long for the width, or that would lose its leading digits, is
    written with an exponent instead.
    """
    text = f"{value:.{decimals}f}"
    tiny = 0 < abs(value) < 10 ** (1 - decimals) and decimals > 1
    if math.isfinite(value) and (tiny or len(text) > width):
        text = f"{value:.1e}"
        if len(text) > width:
            text = f"{value:.0e}"
    return text.rjust(width)


class MetricsTable:
    """Formats metrics as lines of one table.

    A header precedes the first line, every `HEADER_EVERY`-th line and every line whose
    columns differ from those of the line before.

    Args:
      total_steps: number of steps of the run.
    """

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._columns: tuple[Column, ...] = ()
        self._lines_since_header = 0

    def restart(self) -> None:
        """Precede the next line with a header, e.g. after other output."""
        self._columns = ()

    def format(self, step: int, values: Values) -> list[str]:
        """Return the line of a step, after a header if one is due."""
        columns = tuple(c for c in COLUMNS if not values.keys().isdisjoint(c.metrics))
        step_width = 2 * len(str(self._total_steps)) + 1
        lines = []
        if columns != self._columns or self._lines_since_header >= HEADER_EVERY:
            self._columns, self._lines_since_header = columns, 0
            headers = [column.header.rjust(column.width) for column in columns]
            lines.append("  ".join(["step".rjust(step_width), *headers]))
        self._lines_since_header += 1
        cells = [f"{step}/{self._total_steps}".rjust(step_width)]
        for column in columns:
            value = next(values[name] for name in column.metrics if name in values)
            if column.percent:
                number = format_number(100 * value, column.width - 1, column.decimals)
                cells.append(f"{number}%")
            else:
                cells.append(format_number(value, column.width, column.decimals))
        lines.append("  ".join(cells))
        return lines


def format_block(title: str, values: Values) -> list[str]:
    """Format evaluation scores as an indented block of aligned columns."""
    if not values:
        return [title]
    cells = _aligned_cells(values)
    per_line = max(1, (MAX_WIDTH - 2) // (len(cells[0]) + 4))
    rows = -(-len(cells) // per_line)  # filled by column, as `ls` does
    return [title] + [
        "  " + "    ".join(cells[row::rows]).rstrip() for row in range(rows)
    ]


def _aligned_cells(values: Values) -> Sequence[str]:
    """Return `name value` strings of equal length."""
    numbers = [f"{value:.4g}" for value in values.values()]
    name_width, number_width = max(map(len, values)), max(map(len, numbers))
    return [
        f"{name:<{name_width}}  {number:>{number_width}}"
        for name, number in zip(values, numbers, strict=True)
    ]


def shorten_path(path: str | pathlib.Path) -> str:
    """Return the path relative to the current directory if that is shorter."""
    if is_remote(path):
        return str(path)
    absolute = os.path.abspath(path)
    try:
        relative = os.path.relpath(absolute)
    except ValueError:  # another drive on Windows
        return absolute
    return relative if len(relative) < len(absolute) else absolute


class Terminal:
    """Prints lines to stderr, above a progress bar if stderr is a terminal.

    Args:
      total_steps: number of steps of the run.
      start_step: steps taken before this process started.
    """

    def __init__(self, total_steps: int, start_step: int = 0) -> None:
        self._table = MetricsTable(total_steps)
        self._console = rich.console.Console(file=sys.stderr, highlight=False)
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[numbers]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            refresh_per_second=4,
            transient=True,
        )
        self._rate = ""
        self._compiled = False
        self._broken_samples = 0.0
        self._task = self._bar.add_task(
            "compiling", total=total_steps, completed=start_step, numbers=""
        )
        self._bar.start()

    def advance(self, step: int, loss: float | None = None) -> None:
        """Move the bar to a step and show its loss."""
        numbers = [f"loss {loss:.3f}"] if loss is not None else []
        self._bar.update(
            self._task,
            completed=step,
            description="training",
            numbers="  ".join(numbers + [self._rate] * bool(self._rate)),
        )

    def write_metrics(self, step: int, values: Values) -> None:
        """Print the metrics of a step as a line of the table."""
        if (rate := values.get("images_per_second_per_chip")) is not None:
            self._rate = f"{rate:.1f} images/s/chip"
        self._report_compilation(values.get("compile_seconds"))
        self._report_broken_samples(values.get("broken_samples", 0.0))
        *header, line = self._table.format(step, values)
        for text in header:
            self._print(text, style="bold")
        self._print(line)
        sources = source_counts.from_metrics(values)
        if header and len(sources) > 1:  # as often as the header
            self._print(f"rows so far: {source_counts.describe(sources)}")

    def _report_compilation(self, seconds: float | None) -> None:
        if seconds is None:
            return
        cause = " for a new batch shape" if self._compiled else ""
        self._print(f"compiled the training step{cause} in {seconds:.1f} s")
        self._compiled = True

    def _report_broken_samples(self, count: float) -> None:
        if count > self._broken_samples:
            self._print(f"broken samples replaced so far: {count:.0f}")
        self._broken_samples = count

    def write_block(self, title: str, values: Values) -> None:
        """Print evaluation scores as a block."""
        title, *lines = format_block(title, values)
        self._print(title, style="bold")
        for line in lines:
            self._print(line)
        self._table.restart()

    def write_line(self, text: str) -> None:
        """Print a line of text."""
        self._print(text)

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, soft_wrap=True, markup=False)

    @contextlib.contextmanager
    def hide_bar(self) -> Iterator[None]:
        """Hide the bar while other code draws its own, e.g. an evaluation."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()
