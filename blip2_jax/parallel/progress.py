"""Progress of long evaluations: a bar on a terminal, otherwise occasional lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import rich.console
import rich.progress

from blip2_jax.parallel import hosts

T = TypeVar("T")

LINE_INTERVAL_S = 60.0  # between two lines without a terminal


def track_progress(
    items: Sequence[T], description: str, interval_s: float = LINE_INTERVAL_S
) -> Iterator[T]:
    """Yield the items while process 0 reports on stderr how many are done.

    Args:
      items: the items to process.
      description: the name of the work, e.g. "re-ranking".
      interval_s: seconds between two lines if stderr is not a terminal.
    """
    if not hosts.is_first():
        yield from items
    elif sys.stderr.isatty():
        console = rich.console.Console(file=sys.stderr)
        yield from rich.progress.track(
            items, description, console=console, transient=True
        )
    else:
        yield from _lines(items, description, interval_s)


def _lines(items: Sequence[T], description: str, interval_s: float) -> Iterator[T]:
    """Yield the items and print a line at most every `interval_s` seconds."""
    start = last_line = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last_line >= interval_s:
            left = (now - start) / done * (len(items) - done)
            line = f"{description}: {done} of {len(items)}, about {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
            last_line = now
        yield item
