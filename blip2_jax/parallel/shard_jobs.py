"""Jobs over shards: each shard is one output file, written once and whole.

A job (captioning a folder, caching features, ...) divides its input into shards that do
not depend on each other. A shard's file is written beside its name and renamed when it
is whole; its report (`NAME.report.json`) is renamed after it, so that a shard with a
report is finished. A job that is killed and started again does only what is missing.
"""

from __future__ import annotations

import abc
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blip2_jax.parallel.files import FileFormatError, parse_json
from blip2_jax.parallel.progress import track_progress

Report = dict[str, Any]

_SETTINGS = "job.json"


class ShardJob(abc.ABC):
    """Work on shards. A job is pickled into worker processes before `open`.

    Attributes:
      output: directory of the output files.
    """

    output: pathlib.Path

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


class OtherSettings(ValueError):
    """The output directory belongs to a job with other settings."""


def run_shards(
    job: ShardJob, *, processes: int = 1, part: tuple[int, int] = (0, 1)
) -> list[Report]:
    """Write all shards of a job that are not finished.

    Args:
      job: the job.
      processes: number of worker processes; 1: this process.
      part: (i, n) works on the shards i, i+n, i+2n, ... only, as one of n machines.

    Returns:
      The reports of all finished shards of the part, in their order.

    Raises:
      OtherSettings: the directory holds the output of other settings.
    """
    job.output.mkdir(parents=True, exist_ok=True)
    _check_settings(job)
    shards = range(job.num_shards())[part[0] :: part[1]]
    missing = [shard for shard in shards if read_report(job, shard) is None]
    description = f"{job.output.name}: shards"
    if missing:
        written = _in_processes(job, missing, processes)
        for _ in zip(track_progress(missing, description), written, strict=True):
            pass
    return finished_reports(job, shards)


def finished_reports(job: ShardJob, shards: Sequence[int]) -> list[Report]:
    """Return the reports of the finished ones among shards."""
    reports = (read_report(job, shard) for shard in shards)
    return [report for report in reports if report is not None]


def read_report(job: ShardJob, shard: int) -> Report | None:
    """Return the report of a shard; None if the shard is not finished."""
    path = _report_path(job, shard)
    if not (path.exists() and (job.output / job.file_name(shard)).exists()):
        return None
    try:
        report = parse_json(path.read_bytes(), path)
    except FileFormatError:  # the shard is written again
        return None
    return report if isinstance(report, dict) else None


def finish_shard(job: ShardJob, shard: int) -> Report:
    """Write a shard and its report; the job must be open."""
    name = job.file_name(shard)
    path = job.output / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        report = job.write_shard(shard, temporary)
        temporary.replace(path)
        write_json(_report_path(job, shard), report)
    finally:
        if temporary.exists():
            temporary.unlink()
    return report


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write a JSON file that is whole under its name."""
    temporary = path.parent / f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)


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
    names = sorted({*before, *settings}) if isinstance(before, dict) else []
    changed = [
        f"{name} is {settings.get(name)!r}, was {before.get(name)!r}"
        for name in names
        if settings.get(name) != before.get(name)
    ]
    raise OtherSettings(
        f"{job.output} holds the output of other settings ({'; '.join(changed)}); "
        "name another output directory"
    )


_job: ShardJob  # of this worker process


def _open_in_worker(job: ShardJob) -> None:
    global _job
    job.open()
    _job = job


def _finish_in_worker(shard: int) -> Report:
    return finish_shard(_job, shard)


def _in_processes(
    job: ShardJob, shards: Sequence[int], processes: int
) -> Iterator[Report]:
    """Yield the reports of shards as they are finished."""
    if processes == 1:
        job.open()
        for shard in shards:
            yield finish_shard(job, shard)
        return
    context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
    with concurrent.futures.ProcessPoolExecutor(
        min(processes, len(shards)), context, _open_in_worker, (job,)
    ) as pool:
        futures = [pool.submit(_finish_in_worker, shard) for shard in shards]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
