"""Run commands that need each other's results, one on each core, each with a log."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import TextIO

from blip2_jax.parallel.signals import exit_on_sigterm

PACKAGE_PARENT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Job:
    """A command to run.

    Attributes:
      name: name by which other jobs refer to this one.
      command: program and arguments.
      log: file to which the output is appended.
      needs: names of jobs that must finish first.
    """

    name: str
    command: Sequence[str]
    log: pathlib.Path
    needs: tuple[str, ...] = ()


def python_command(module: str, *arguments: str) -> list[str]:
    """Return a command that runs a module of this package in a new interpreter."""
    return [sys.executable, "-m", module, *arguments]


def run_jobs(
    jobs: Sequence[Job],
    *,
    cores: Sequence[int],
    report: Callable[[str], None] = print,
    echo: bool = False,
) -> list[str]:
    """Run all jobs in order, one on each core at a time.

    If a job fails, the jobs that need it are skipped and all others are run. An
    interrupt or SIGTERM terminates the running jobs; a training run then saves a
    checkpoint.

    Args:
      jobs: jobs to run; names in `needs` that are not among them count as finished.
      cores: cores; each job is bound to one of them.
      report: function that is called with a line about each job.
      echo: report the output of the jobs too, each line after the job's name.

    Returns:
      Names of the jobs that failed or were skipped.

    Raises:
      SystemExit: SIGTERM was received; the running jobs have ended.
    """
    queue = _JobQueue(list(jobs), report, echo)
    with exit_on_sigterm(), futures.ThreadPoolExecutor(len(cores)) as workers:
        try:
            work = [workers.submit(queue.work, core) for core in cores]
            for future in futures.as_completed(work):
                future.result()
        except BaseException:
            queue.stop()
            raise
    return queue.failed


class _JobQueue:
    """Waiting, running and failed jobs; shared by the worker threads."""

    def __init__(
        self, jobs: list[Job], report: Callable[[str], None], echo: bool
    ) -> None:
        self.failed: list[str] = []
        self._waiting, self._report, self._echo = jobs, report, echo
        self._unfinished = {job.name for job in jobs}
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._changed, self._stopped = threading.Condition(), False
        self._count = len(jobs)

    def work(self, core: int) -> None:
        """Run jobs on a core until none is left."""
        while (job := self._take()) is not None:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with job.log.open("a") as log:
                self._finish(job, self._run(job, core, log))

    def _run(self, job: Job, core: int, log: TextIO) -> int:
        """Run a job; returns its exit code."""
        try:
            process = subprocess.Popen(
                _on_core(core, job.command),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            log.write(f"{error}\n")
            return 127
        with self._changed:
            self._running[job.name] = process
            if self._stopped:  # `stop` was called while the process started
                process.terminate()
        assert process.stdout is not None  # a pipe
        for line in process.stdout:
            log.write(line)
            log.flush()
            if self._echo:
                self._report(f"{job.name} | {line.rstrip()}")
        return process.wait()

    def stop(self) -> None:
        """Skip the waiting jobs and terminate the running ones."""
        with self._changed:
            self._waiting.clear()
            self._stopped = True
            for process in self._running.values():
                process.terminate()
            self._changed.notify_all()

    def _take(self) -> Job | None:
        """Wait for a job whose needs are finished; returns None if no job is left."""
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
                self._report(f"{job.name} failed ({code}): see {job.log}")
            else:
                self._report(f"{job.name} done, {left} of {self._count} left")
            self._changed.notify_all()

    def _fail(self, name: str) -> None:
        """Mark a job and all jobs that need it as failed."""
        self.failed.append(name)
        for job in [job for job in self._waiting if name in job.needs]:
            self._waiting.remove(job)
            self._unfinished.discard(job.name)
            self._fail(job.name)


def _environment() -> dict[str, str]:
    """Return this process's environment with this package importable.

    `python launch/NAME.py` needs no installation, but a new interpreter finds the
    package of a checkout only by PYTHONPATH.
    """
    if not (PACKAGE_PARENT / "setup.py").exists():  # installed
        return dict(os.environ)
    paths = [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _on_core(core: int, command: Sequence[str]) -> list[str]:
    """Return a command bound to one core, where the system has `taskset`."""
    if hasattr(os, "sched_setaffinity"):
        return ["taskset", "--cpu-list", str(core), *command]
    return list(command)
