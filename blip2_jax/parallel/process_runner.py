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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blip2_jax.parallel.worker_places import Place

if TYPE_CHECKING:
    from blip2_jax.parallel.shard_jobs import ShardJob

# Writes a shard; returns what went wrong, "" if nothing.
Write = Callable[["ShardJob", int], str]
# Deletes the unfinished file of a shard that a process of this id left behind.
Discard = Callable[["ShardJob", int, int], None]

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
    job: ShardJob,
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
    queue, deaths = collections.deque(shards), collections.Counter[int]()
    content = pickle.dumps(job)  # once: a job may be large
    workers: list[_Worker] = []
    try:
        for place in places[: len(shards)]:
            workers.append(_start(content, write, place))
            _send_next(workers[-1], queue)
        while workers:
            for worker in _ready(workers):
                shard = worker.shard
                try:
                    answer = worker.connection.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    workers.remove(worker)
                    discard(job, shard, worker.process.pid)
                    deaths[shard] += 1
                    if deaths[shard] < MAX_ATTEMPTS:
                        queue.appendleft(shard)
                    else:
                        yield shard, _describe_death(worker.process.exitcode)
                    if queue:
                        workers.append(_start(content, write, worker.place))
                        _send_next(workers[-1], queue)
                    continue
                if isinstance(answer, BaseException):
                    raise answer
                yield shard, answer
                if not _send_next(worker, queue):
                    worker.process.join()
                    workers.remove(worker)
    finally:
        _stop(job, workers, discard)


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """Wait for a worker that has sent an answer or died."""
    ready = multiprocessing.connection.wait([w.connection for w in workers])
    return [worker for worker in workers if worker.connection in ready]


def _start(content: bytes, write: Write, place: Place) -> _Worker:
    context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
    connection, other_end = context.Pipe()
    arguments = (other_end, place.cores, content, write)
    process = context.Process(target=_work, args=arguments)
    with _environment(place.environment):
        process.start()
    other_end.close()  # so that the worker's death closes the pipe
    return _Worker(process, connection, place)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a new process, which has them before it imports anything."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _send_next(worker: _Worker, queue: collections.deque[int]) -> bool:
    """Send a worker its next shard, or the end; returns False at the end."""
    # A broken pipe is a death, which the next `recv` finds.
    with contextlib.suppress(OSError):
        worker.connection.send(queue[0] if queue else None)
    if not queue:
        return False
    worker.shard = queue.popleft()
    return True


def _stop(
    job: ShardJob,
    workers: Sequence[_Worker],
    discard: Discard,
) -> None:
    """End workers that are still busy; what they have not finished is deleted."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(_SECONDS_TO_END)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        discard(job, worker.shard, worker.process.pid)


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
        job: ShardJob = pickle.loads(content)
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
