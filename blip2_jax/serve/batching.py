"""`Engine`: requests of many users, run by one thread in joint batches.

    engine = Engine(blip2_jax.load("shapes"), max_batch=8, max_queue=64)
    future = engine.submit(CaptionRequest((pixels,)), timeout=10.0)
    texts = future.result()
    engine.close()

One worker thread calls the model. Requests wait in a bounded queue, in the order of
their arrival. The worker takes the oldest one and all others that have its
`join_key`, at most `max_batch` of them, and runs them as one batch. If fewer wait, it
waits for more for `max_wait` seconds after the arrival of the oldest one.

What can be asked is in `serve.requests`; anything with the methods of `Request` works.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol


class QueueFull(RuntimeError):
    """As many requests wait as the queue holds: try again later."""


class EngineClosed(RuntimeError):
    """The engine is closed and takes no more requests."""


class DeadlineExceeded(TimeoutError):
    """A request waited in the queue for longer than its timeout."""


class Request(Protocol):
    """What an engine must know of a request."""

    def join_key(self, model: Any) -> Hashable:
        """Return a key; requests with equal keys can run as one batch.

        It is called by `Engine.submit`, in the thread of the caller.

        Raises:
          ValueError: the model cannot do what is asked.
        """

    def run(self, model: Any, requests: Sequence[Any]) -> Sequence[Any]:
        """Run requests with the key of this one, which is the first of them.

        Returns:
          One result for each request.
        """


@dataclasses.dataclass(frozen=True)
class BatchReport:
    """What the engine tells its observer after a batch.

    Attributes:
      kind: name of the requests' class.
      size: number of requests.
      seconds: time that the batch took.
      waits: seconds that each request spent in the queue.
      failed: number of requests that raised an error.
    """

    kind: str
    size: int
    seconds: float
    waits: tuple[float, ...]
    failed: int


@dataclasses.dataclass(eq=False)
class _Entry:
    """A request in the queue."""

    request: Request
    key: Hashable
    future: Future[Any]
    arrival: float
    deadline: float

    def is_alive(self, now: float) -> bool:
        """Return False after a cancellation or the deadline, which is reported."""
        if self.future.cancelled():
            return False
        if now < self.deadline:
            return True
        if self.future.set_running_or_notify_cancel():
            waited = now - self.arrival
            self.future.set_exception(
                DeadlineExceeded(f"the request waited {waited:.1f} s in the queue")
            )
        return False


class Engine:
    """Runs the requests of many threads in batches, on one thread.

    Attributes:
      model: the model; only the worker thread runs it.
      max_batch: largest number of requests in a batch.
      max_queue: largest number of requests that wait.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_batch: int = 8,
        max_queue: int = 64,
        max_wait: float = 0.005,
        observer: Callable[[BatchReport], None] | None = None,
    ):
        """Start the worker thread.

        Args:
          model: passed to the requests, e.g. a `Blip2`.
          max_batch: see the class.
          max_queue: see the class.
          max_wait: seconds after a request's arrival for which the worker, if it has
            nothing else to do, waits for others to fill the batch.
          observer: called by the worker after each batch.

        Raises:
          ValueError: a limit is below 1.
        """
        if max_batch < 1 or max_queue < 1:
            raise ValueError("max_batch and max_queue must be at least 1")
        self.model, self.max_batch, self.max_queue = model, max_batch, max_queue
        self._max_wait, self._observer = max_wait, observer
        self._queue: collections.deque[_Entry] = collections.deque()
        self._running = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(
            target=self._work, name="blip2-engine", daemon=True
        )
        self._worker.start()

    def submit(self, request: Request, timeout: float | None = None) -> Future[Any]:
        """Queue a request.

        Args:
          request: see `serve.requests`.
          timeout: seconds after which the request is dropped if it still waits; its
            future then raises `DeadlineExceeded`. A batch that runs is not stopped.

        Returns:
          A future of the result. `cancel()` drops a request that still waits.

        Raises:
          QueueFull: `max_queue` requests wait.
          EngineClosed: the engine is closed.
          ValueError: the model cannot do what is asked.
        """
        key = (type(request), request.join_key(self.model))
        now = time.monotonic()
        deadline = math.inf if timeout is None else now + timeout
        entry = _Entry(request, key, Future(), now, deadline)
        with self._changed:
            if self._is_closed:
                raise EngineClosed("the engine is closed")
            if len(self._queue) >= self.max_queue:
                self._drop_dead(now)
            if len(self._queue) >= self.max_queue:
                raise QueueFull(f"{self.max_queue} requests wait already")
            self._queue.append(entry)
            self._changed.notify_all()
        return entry.future

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Number of requests in the batch that runs."""
        return self._running

    def close(self, *, finish: bool = True, timeout: float | None = None) -> bool:
        """Refuse new requests and stop the worker.

        Args:
          finish: run what waits; False cancels it. The batch that runs is finished.
          timeout: seconds to wait for the worker; None: as long as it takes.

        Returns:
          True if the worker has stopped.
        """
        with self._changed:
            self._is_closed = True
            if not finish:
                for entry in self._queue:
                    entry.future.cancel()
                self._queue.clear()
            self._changed.notify_all()
        self._worker.join(timeout)
        return not self._worker.is_alive()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        """Run batches until the engine is closed and its queue is empty."""
        while batch := self._next_batch():
            self._run_batch(batch)

    def _next_batch(self) -> list[_Entry]:
        """Wait for a batch and take it; an empty list: the engine is closed."""
        with self._changed:
            while True:
                now = time.monotonic()
                self._drop_dead(now)
                if self._queue:
                    alike, remaining = self._alike(now)
                    if remaining > 0:
                        self._changed.wait(remaining)
                    elif batch := self._take(alike):
                        return batch
                elif self._is_closed:
                    return []
                else:
                    self._changed.wait()

    def _alike(self, now: float) -> tuple[list[_Entry], float]:
        """Return the entries to run next, and the seconds to wait for others."""
        oldest = self._queue[0]
        alike = [entry for entry in self._queue if entry.key == oldest.key]
        is_final = len(alike) >= self.max_batch or self._is_closed
        remaining = 0.0 if is_final else oldest.arrival + self._max_wait - now
        return alike[: self.max_batch], remaining

    def _take(self, entries: list[_Entry]) -> list[_Entry]:
        """Remove entries from the queue; return those that are not cancelled."""
        removed = set(map(id, entries))
        self._queue = collections.deque(e for e in self._queue if id(e) not in removed)
        taken = [e for e in entries if e.future.set_running_or_notify_cancel()]
        self._running = len(taken)
        return taken

    def _drop_dead(self, now: float) -> None:
        """Remove the entries that were cancelled or are too late."""
        dead = [entry for entry in list(self._queue) if not entry.is_alive(now)]
        for entry in dead:
            self._queue.remove(entry)

    def _run_batch(self, batch: list[_Entry]) -> None:
        """Run a batch, hand out its results and report it."""
        start = time.monotonic()
        failed = self._resolve(batch)
        self._running = 0
        if self._observer is not None:
            self._observer(
                BatchReport(
                    kind=type(batch[0].request).__name__,
                    size=len(batch),
                    seconds=time.monotonic() - start,
                    waits=tuple(start - entry.arrival for entry in batch),
                    failed=failed,
                )
            )

    def _resolve(self, batch: list[_Entry]) -> int:
        """Run requests and set their futures; return the number of those that failed.

        If a joint batch fails, its requests are run one by one, so that a wrong one
        fails no other.
        """
        requests = [entry.request for entry in batch]
        try:
            results = list(requests[0].run(self.model, requests))
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results of {len(batch)} requests")
        except Exception as error:
            if len(batch) > 1:
                return sum(self._resolve([entry]) for entry in batch)
            batch[0].future.set_exception(error)
            return 1
        for entry, result in zip(batch, results, strict=True):
            entry.future.set_result(result)
        return 0
