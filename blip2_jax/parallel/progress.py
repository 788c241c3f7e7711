"""Progress of long work on stderr: done, items per second, time left."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import rich.console
import rich.progress

T = TypeVar("T")

LINE_INTERVAL_S = 60.0  # between two lines without a terminal


class WorkProgress:
    """A bar on a terminal, which goes at the end; lines elsewhere.

    Use it in a `with` statement.

    Args:
      name: the name of the work.
      unit: what is counted, in the plural.
      total: number of items.
      done: number of items that an earlier run has finished.
      interval_s: seconds between two lines if stderr is not a terminal.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        total: int,
        done: int = 0,
        interval_s: float = LINE_INTERVAL_S,
    ):
        self._name, self._unit, self._total = name, unit, total
        self._done = self._done_before = done
        self._interval_s = interval_s
        self._start = self._last_line = time.monotonic()
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> WorkProgress:
        if sys.stderr.isatty():
            self._bar = rich.progress.Progress(
                "{task.description}",
                rich.progress.BarColumn(),
                "{task.fields[state]}",
                console=rich.console.Console(file=sys.stderr),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._name, total=self._total, completed=self._done, state=self._state()
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """Count finished items."""
        self._done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, state=self._state())
            return
        now = time.monotonic()
        if self._done < self._total and now - self._last_line >= self._interval_s:
            print(f"{self._name}: {self._state()}", file=sys.stderr, flush=True)
            self._last_line = now

    def _state(self) -> str:
        """Return e.g. "12,000 of 40,000 images, 35.2 images/s, 0:13:15 left"."""
        text = f"{self._done:,} of {self._total:,} {self._unit}"
        rate = (self._done - self._done_before) / (time.monotonic() - self._start)
        if rate <= 0:
            return text
        left = datetime.timedelta(seconds=round((self._total - self._done) / rate))
        return f"{text}, {rate:,.1f} {self._unit}/s, {left} left"


def track_progress(
    items: Sequence[T], name: str, unit: str, interval_s: float = LINE_INTERVAL_S
) -> Iterator[T]:
    """Yield the items; the first process reports how many are done.

    The arguments are those of `WorkProgress`.
    """
    from blip2_jax.parallel import hosts  # jax: the help of a command does without

    if not hosts.is_first():
        yield from items
        return
    with WorkProgress(name, unit, len(items), interval_s=interval_s) as progress:
        for item in items:
            yield item
            progress.advance(1)
