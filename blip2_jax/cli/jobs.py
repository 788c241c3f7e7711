"""Commands that need each other's results, one a core, each with a log of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import TextIO


@dataclasses.dataclass(frozen=True)
class Job:
    """A command to be run.

    Attributes:
      name: others need it by this name.
      command: what to run.
      log: the file that its output is added to.
      needs: names of jobs that have to be done before.
    """

    name: str
    command: Sequence[str]
    log: pathlib.Path
    needs: tuple[str, ...] = ()


def cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def run_jobs(
    jobs: Sequence[Job],
    *,
    places: Sequence[int],
    environment: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = print,
    echo: bool = False,
) -> list[str]:
    """Run all jobs, as many at a time as there are places, in their order.

    A job that fails takes those that need it with it; all others are run. An
    interrupt, or SIGTERM, ends the jobs that run, politely: a training run saves and
    leaves.

    Args:
      jobs: those to run; what they need and is not among them is taken to be done.
      places: cores; each job is held to the one it is given.
      environment: of the commands; None: this process's.
      tell: called with a line about each job.
      echo: tell what the jobs say too, line by line, behind their names.

    Returns:
      Names of the jobs that failed, or were not run for that reason.

    Raises:
      SystemExit: SIGTERM came; what ran has ended.
    """
    board = _Board(list(jobs), tell, echo)
    with _exit_on_sigterm(), futures.ThreadPoolExecutor(len(places)) as workers:
        try:
            work = [workers.submit(board.work, place, environment) for place in places]
            for each in futures.as_completed(work):
                each.result()
        except BaseException:
            board.stop()
            raise
    return board.failed


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit in the main thread, so that what was begun is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Board:
    """Which jobs wait, run, are done and have failed; shared by the workers."""

    def __init__(
        self, jobs: list[Job], tell: Callable[[str], None], echo: bool
    ) -> None:
        self.failed: list[str] = []
        self._waiting, self._tell, self._echo = jobs, tell, echo
        self._unfinished = {job.name for job in jobs}
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._changed, self._stopped = threading.Condition(), False
        self._count = len(jobs)

    def work(self, place: int, environment: Mapping[str, str] | None) -> None:
        """Take jobs until none is left."""
        while (job := self._take()) is not None:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with job.log.open("a") as log:
                self._finish(job, self._run(job, place, environment, log))

    def _run(
        self,
        job: Job,
        place: int,
        environment: Mapping[str, str] | None,
        log: TextIO,
    ) -> int:
        """Run a job; returns its exit code."""
        try:
            process = subprocess.Popen(
                _held_to(place, job.command),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            log.write(f"{error}\n")
            return 127
        with self._changed:
            self._running[job.name] = process
            if self._stopped:  # while it was begun
                process.terminate()
        assert process.stdout is not None  # a pipe
        for line in process.stdout:
            log.write(line)
            log.flush()
            if self._echo:
                self._tell(f"{job.name} | {line.rstrip()}")
        return process.wait()

    def stop(self) -> None:
        """Start nothing more, and ask what runs to end."""
        with self._changed:
            self._waiting.clear()
            self._stopped = True
            for process in self._running.values():
                process.terminate()
            self._changed.notify_all()

    def _take(self) -> Job | None:
        """The first job whose needs are met; waits for one; None: there are no more."""
        with self._changed:
            while self._waiting:
                for job in self._waiting:
                    if not self._unfinished.intersection(job.needs):
                        self._waiting.remove(job)
                        return job
                self._changed.wait()
            return None

    def _finish(self, job: Job, code: int) -> None:
        with self._changed:
            self._running.pop(job.name, None)
            self._unfinished.discard(job.name)
            left = len(self._unfinished)
            if code:
                self._fail(job.name)
                self._tell(f"{job.name} failed ({code}): see {job.log}")
            else:
                self._tell(f"{job.name} done, {left} of {self._count} left")
            self._changed.notify_all()

    def _fail(self, name: str) -> None:
        """The job, and all that need it."""
        self.failed.append(name)
        for job in [job for job in self._waiting if name in job.needs]:
            self._waiting.remove(job)
            self._unfinished.discard(job.name)
            self._fail(job.name)


def _held_to(place: int, command: Sequence[str]) -> list[str]:
    """The command on one core, where the system can hold it there."""
    if hasattr(os, "sched_setaffinity"):
        return ["taskset", "--cpu-list", str(place), *command]
    return list(command)
