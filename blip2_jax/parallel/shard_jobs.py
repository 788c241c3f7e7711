"""Jobs over shards: each shard is one output file, written once and whole.

A job (captioning a folder, caching features, ...) divides its input into shards that do
not depend on each other. A shard's file is written beside its name and renamed when it
is whole; its report (`NAME.report.json`) is renamed after it, so that a shard with a
report is finished. A job that is killed and started again does only what is missing.

Two machines that write the same shard do no harm (see `shard_files`).
"""

from __future__ import annotations

import abc
import concurrent.futures
import contextlib
import json
import pathlib
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from blip2_jax.parallel.files import FileFormatError, parse_json
from blip2_jax.parallel.process_runner import run_in_processes
from blip2_jax.parallel.progress import WorkProgress
from blip2_jax.parallel.shard_files import (
    delete_leftovers,
    delete_unfinished,
    whole_file,
    write_json,
)
from blip2_jax.parallel.signals import exit_on_sigterm
from blip2_jax.parallel.worker_places import worker_places

Report = dict[str, Any]

RUNNERS = ("processes", "ray")
# So many failures without a success in between have one cause, such as a full disk.
MAX_FAILURES_IN_A_ROW = 25
_SETTINGS = "job.json"
_LISTED = 10  # failures in a message
_THREADS = 16  # that read reports, which may be on an object store


class ShardJob(abc.ABC):
    """Work on shards. A job is pickled into worker processes before `open`.

    Attributes:
      output: directory of the output files.
      uses_model: workers compute with JAX, so that each has a device of its own.
      unit: what `size` counts, in the plural.
    """

    output: pathlib.Path
    uses_model: ClassVar[bool] = True
    unit: ClassVar[str] = "shards"

    @abc.abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Return what the output depends on, as JSON: inputs, model, options.

        A directory with the output of other settings is refused.
        """

    @abc.abstractmethod
    def num_shards(self) -> int:
        """Return the number of shards."""

    @abc.abstractmethod
    def file_name(self, shard: int) -> str:
        """Return the name of a shard's output file."""

    @abc.abstractmethod
    def open(self) -> None:
        """Open the inputs and load the model, once in each process that works."""

    @abc.abstractmethod
    def write_shard(self, shard: int, path: pathlib.Path) -> Report:
        """Write the output of a shard.

        Args:
          shard: index of the shard.
          path: file to write; it is renamed to `file_name` afterwards.

        Returns:
          What happened, as JSON: counts by cause, ... It must not depend on which
          process or attempt wrote the shard.
        """

    def size(self, shard: int) -> int:
        """Return the number of items in a shard, for the display of progress."""
        del shard
        return 1


class OtherSettings(ValueError):
    """The output directory belongs to a job with other settings."""


class ShardsFailed(RuntimeError):
    """Some shards could not be written; all others are finished.

    Attributes:
      failures: what went wrong, by name of the shard's file.
    """

    def __init__(self, failures: Mapping[str, str], untried: int = 0):
        """Describe the failures; `untried` shards were not started."""
        self.failures = dict(failures)
        lines = [f"{name}: {text}" for name, text in failures.items()]
        listed = "; ".join([*lines[:_LISTED], *(["..."] * (len(lines) > _LISTED))])
        left = f"; after so many in a row {untried} were not tried" if untried else ""
        super().__init__(
            f"{len(failures)} shards failed ({listed}){left}; the same command "
            "tries them again"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.failures,)


def run_shards(
    job: ShardJob,
    *,
    processes: int | None = 1,
    part: tuple[int, int] = (0, 1),
    runner: str = "processes",
) -> list[Report]:
    """Write all shards of a job that are not finished.

    A shard that raises an error does not stop the others.

    Args:
      job: the job.
      processes: number of worker processes; 1: this process, None: one a device.
      part: (i, n) works on the shards i, i+n, i+2n, ... only, as one of n machines.
      runner: where workers run: "processes" of this machine or on a "ray" cluster.

    Returns:
      The reports of all shards of the part, in their order.

    Raises:
      OtherSettings: the directory holds the output of other settings.
      ShardsFailed: shards raised errors, or their workers died repeatedly. The
        tracebacks are in the files `NAME.error.txt`.
    """
    job.output.mkdir(parents=True, exist_ok=True)
    _check_settings(job)
    shards = range(job.num_shards())[part[0] :: part[1]]
    reports = read_reports(job, shards)
    missing = [shard for shard in shards if shard not in reports]
    if missing:
        done = sum(map(job.size, reports))
        total = done + sum(map(job.size, missing))
        progress = WorkProgress(job.output.name, job.unit, total, done)
        outcomes = _outcomes(job, missing, processes, runner)
        with exit_on_sigterm(), progress, contextlib.closing(outcomes):
            _follow(job, len(missing), outcomes, progress)
        reports |= read_reports(job, missing)
    if len(reports) == job.num_shards():  # nobody writes any more
        for directory in {(job.output / job.file_name(s)).parent for s in shards}:
            delete_leftovers(list(directory.iterdir()), of_others=True)
    return [reports[shard] for shard in shards if shard in reports]


def _outcomes(
    job: ShardJob, shards: Sequence[int], processes: int | None, runner: str
) -> Generator[tuple[int, str], None, None]:
    """Write shards; yield each with what went wrong, "" if it is finished."""
    if runner == "ray":
        from blip2_jax.parallel.ray_runner import run_on_ray

        yield from run_on_ray(job, shards, processes, try_shard)
        return
    places = worker_places(processes, job.uses_model)
    if len(places) > 1:
        yield from run_in_processes(job, shards, places, try_shard, _discard)
        return
    job.open()
    for shard in shards:
        yield shard, try_shard(job, shard)


def _follow(
    job: ShardJob,
    count: int,
    outcomes: Iterator[tuple[int, str]],
    progress: WorkProgress,
) -> None:
    """Consume the outcomes of `count` shards.

    Raises:
      ShardsFailed: at the end, or after `MAX_FAILURES_IN_A_ROW`.
    """
    failures: dict[str, str] = {}
    in_a_row = 0
    for tried, (shard, failure) in enumerate(outcomes, 1):
        progress.advance(job.size(shard))
        in_a_row = in_a_row + 1 if failure else 0
        if failure:
            failures[job.file_name(shard)] = failure
        if in_a_row == MAX_FAILURES_IN_A_ROW and tried < count:
            raise ShardsFailed(failures, count - tried)
    if failures:
        raise ShardsFailed(failures)


def is_started(job: ShardJob) -> bool:
    """Return True if `run_shards` was called for the job's output before."""
    return (job.output / _SETTINGS).exists()


def finished_reports(job: ShardJob, shards: Sequence[int]) -> list[Report]:
    """Return the reports of the finished ones among shards."""
    return list(read_reports(job, shards).values())


def read_reports(job: ShardJob, shards: Sequence[int]) -> dict[int, Report]:
    """Return the reports of the finished ones among shards, by shard, in order.

    Files that dead processes of this machine left unfinished are deleted.
    """
    listings: dict[pathlib.Path, set[str]] = {}
    listed = []
    for shard in shards:
        path, report = job.output / job.file_name(shard), _report_path(job, shard)
        if path.parent not in listings:
            files = list(path.parent.iterdir()) if path.parent.is_dir() else []
            delete_leftovers(files, of_others=False)
            listings[path.parent] = {file.name for file in files}
        if {path.name, report.name} <= listings[path.parent]:
            listed.append(shard)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        reports = pool.map(lambda shard: read_report(job, shard), listed)
        pairs = zip(listed, reports, strict=True)
        return {shard: report for shard, report in pairs if report is not None}


def read_report(job: ShardJob, shard: int) -> Report | None:
    """Return the report of a shard; None if the shard is not finished."""
    path = _report_path(job, shard)
    try:
        if not (job.output / job.file_name(shard)).exists():
            return None
        report = parse_json(path.read_bytes(), path)
    except (FileNotFoundError, FileFormatError):  # the shard is written again
        return None
    return report if isinstance(report, dict) else None


def try_shard(job: ShardJob, shard: int) -> str:
    """Write a shard of an open job; returns what went wrong, "" if nothing.

    The traceback of an error is written to `NAME.error.txt`.
    """
    log = job.output / f"{job.file_name(shard)}.error.txt"
    try:
        finish_shard(job, shard)
        log.unlink(missing_ok=True)
    except Exception as error:
        if read_report(job, shard) is not None:  # another machine has finished it
            return ""
        with contextlib.suppress(OSError):
            log.write_text(traceback.format_exc())
        return f"{type(error).__name__}: {error}"
    return ""


def finish_shard(job: ShardJob, shard: int) -> Report:
    """Write a shard and its report; the job must be open."""
    path = job.output / job.file_name(shard)
    with whole_file(path) as temporary:
        report = job.write_shard(shard, temporary)
    write_json(_report_path(job, shard), report)
    return report


def _discard(job: ShardJob, shard: int, process: int) -> None:
    """Delete what a dead process of this machine has left of a shard."""
    delete_unfinished(job.output / job.file_name(shard), process)


def _report_path(job: ShardJob, shard: int) -> pathlib.Path:
    return job.output / f"{job.file_name(shard)}.report.json"


def _check_settings(job: ShardJob) -> None:
    """Store the settings of a job; refuse a directory with others."""
    path = job.output / _SETTINGS
    settings = json.loads(json.dumps(dict(job.settings())))
    if not path.exists():
        write_json(path, settings)
        return
    before = parse_json(path.read_bytes(), path)
    if before == settings:
        return
    old, new = _flatten(before), _flatten(settings)
    changed = [
        f"{name} is {new.get(name)!r}, was {old.get(name)!r}"
        for name in sorted({*old, *new})
        if new.get(name) != old.get(name)
    ]
    raise OtherSettings(
        f"{job.output} holds the output of other settings ({'; '.join(changed)}); "
        "name another output directory"
    )


def _flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings by name, such as "model.path"."""
    if not isinstance(settings, dict):
        return {prefix: settings}
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}.{name}" if prefix else name)
    return flat
