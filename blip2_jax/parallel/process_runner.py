"""Shards in worker processes of this machine, which are replaced when they die."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

from blip2_jax.parallel.environment import environment
from blip2_jax.parallel.worker_places import Place


class Job(Protocol):
    """What the runners know of a job (`shard_jobs.ShardJob`)."""

    uses_model: ClassVar[bool]

    def open(self) -> None:
        """Open the inputs, once in each process."""


# Writes a shard; returns what went wrong, "" if nothing.
Write = Callable[[Any, int], str]
# Deletes the unfinished file of a shard that a process of this id left behind.
Discard = Callable[[Any, int, int], None]

MAX_ATTEMPTS = 3  # of a shard whose worker dies
_SECONDS_TO_END = 10.0  # for a worker to put its files in order


@dataclasses.dataclass
class _Worker:
    """A process, this end of its pipe, where it runs and what it works on."""

    process: Any
    connection: multiprocessing.connection.Connection
    place: Place
    shard: int = -1


def run_in_processes(
    job: Job,
    shards: Sequence[int],
    places: Sequence[Place],
    write: Write,
    discard: Discard,
) -> Iterator[tuple[int, str]]:
    """Write shards in several processes.

    A worker that dies (killed, out of memory) is replaced, and its shard is tried again
    up to `MAX_ATTEMPTS` times.

    Args:
      job: the job; it is pickled, and opened in each process.
      shards: indices of shards.
      places: where the workers run; no more start than there are shards.
      write: writes a shard.
      discard: deletes what a dead worker left behind.

    Yields:
      A shard, and what went wrong with it, "" if it is finished.

    Raises:
      Exception: what `job.open` raised.
    """
    workers = _Workers(job, shards, write, discard)
    try:
        for place in places[: len(shards)]:
            workers.start(place)
        yield from workers.outcomes()
    finally:
        workers.stop()


class _Workers:
    """The running workers of a job and the shards that wait for them."""

    def __init__(self, job: Job, shards: Sequence[int], write: Write, discard: Discard):
        self._job, self._write, self._discard = job, write, discard
        self._content = pickle.dumps(job)  # once: a job may be large
        self._queue = collections.deque(shards)
        self._deaths = collections.Counter[int]()
        self._running: list[_Worker] = []

    def start(self, place: Place) -> None:
        """Start a worker and send it a shard."""
        worker = _start(self._content, self._write, place)
        self._running.append(worker)
        self._send_next(worker)

    def outcomes(self) -> Iterator[tuple[int, str]]:
        """Yield the outcomes of shards until all are done; see `run_in_processes`."""
        while self._running:
            pipes = [worker.connection for worker in self._running]
            ready = multiprocessing.connection.wait(pipes)
            for worker in [w for w in self._running if w.connection in ready]:
                shard = worker.shard
                try:
                    answer = worker.connection.recv()
                except (EOFError, OSError):
                    yield from self._replace(worker)
                    continue
                if isinstance(answer, BaseException):
                    raise answer
                yield shard, answer
                self._send_next(worker)

    def _send_next(self, worker: _Worker) -> None:
        """Send a worker its next shard, or the end."""
        shard = self._queue.popleft() if self._queue else None
        # A broken pipe is a death, which the next `recv` finds.
        with contextlib.suppress(OSError):
            worker.connection.send(shard)
        if shard is None:
            worker.process.join()
            self._running.remove(worker)
        else:
            worker.shard = shard

    def _replace(self, worker: _Worker) -> Iterator[tuple[int, str]]:
        """Start a worker in place of a dead one; yield its shard if it fails."""
        worker.process.join()
        self._running.remove(worker)
        shard = worker.shard
        self._discard(self._job, shard, worker.process.pid)
        self._deaths[shard] += 1
        if self._deaths[shard] < MAX_ATTEMPTS:
            self._queue.appendleft(shard)
        else:
            yield shard, _describe_death(worker.process.exitcode)
        if self._queue:
            self.start(worker.place)

    def stop(self) -> None:
        """End workers that are still busy; what they have not finished is deleted."""
        for worker in self._running:
            worker.process.terminate()
        for worker in self._running:
            worker.process.join(_SECONDS_TO_END)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            self._discard(self._job, worker.shard, worker.process.pid)


def _start(content: bytes, write: Write, place: Place) -> _Worker:
    context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
    connection, other_end = context.Pipe()
    arguments = (other_end, place.cores, content, write)
    process = context.Process(target=_work, args=arguments)
    with environment(place.environment):
        process.start()
    other_end.close()  # so that the worker's death closes the pipe
    return _Worker(process, connection, place)


def _describe_death(code: int) -> str:
    """Say how a worker died."""
    text = f"exit code {code}"
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps out of memory" if name == "SIGKILL" else ""
        text = f"{name}{hint}"
    return f"its worker process died {MAX_ATTEMPTS} times ({text})"


def _work(
    connection: multiprocessing.connection.Connection,
    cores: Sequence[int],
    content: bytes,
    write: Write,
) -> None:
    """Open a job and write the shards that arrive, until None does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    try:
        job: Job = pickle.loads(content)
        job.open()
    except Exception as error:
        connection.send(picklable(error))
        return
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent has ended
        for shard in iter(connection.recv, None):
            connection.send(write(job, shard))


def _end_with_parent() -> None:
    """Terminate this process when its parent has died."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def picklable(error: Exception) -> Exception:
    """Return an error that can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # some have other arguments than their constructor
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
