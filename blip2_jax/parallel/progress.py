"""How far a long evaluation is: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import rich.console
import rich.progress

from blip2_jax.parallel import hosts

T = TypeVar("T")

QUIET_S = 60.0  # between two lines, where there is no terminal


def track_progress(
    items: Sequence[T], what: str, quiet_s: float = QUIET_S
) -> Iterator[T]:
    """The items, one by one; the first process tells on stderr how many are done.

    Args:
      items: what is worked through.
      what: what is done, as "re-ranking".
      quiet_s: seconds between two lines where stderr is no terminal.
    """
    if not hosts.is_first():
        yield from items
    elif sys.stderr.isatty():
        console = rich.console.Console(file=sys.stderr)
        yield from rich.progress.track(items, what, console=console, transient=True)
    else:
        yield from _lines(items, what, quiet_s)


def _lines(items: Sequence[T], what: str, quiet_s: float) -> Iterator[T]:
    started = told = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - told >= quiet_s:
            left = (now - started) / done * (len(items) - done)
            line = f"{what}: {done} of {len(items)}, about {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
            told = now
        yield item
