"""Work on items in threads, ahead of the use of the results."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    read: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int,
    threads: int = 4,
) -> Iterator[Result]:
    """Yield `read(item)` of each item, in order, while threads read the next ones.

    Args:
      read: called in several threads; its exceptions are raised here.
      items: the items.
      ahead: number of results that are held or being read.
      threads: number of threads.
    """
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        pending: collections.deque[concurrent.futures.Future[Result]]
        pending = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(read, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def in_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
