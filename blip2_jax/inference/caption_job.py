"""Captions, answers or scores for any number of images: a job over shards.

Shards are kept in `OUTPUT.parts` until all are finished, then joined in the order of
the images. Tars are not joined: each is a shard.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.inference import caption_files, image_batches, image_sets
from blip2_jax.inference.image_requests import ImageRequest
from blip2_jax.inference.load import load
from blip2_jax.inference.model import Blip2
from blip2_jax.parallel.files import parse_json
from blip2_jax.parallel.paths import is_remote
from blip2_jax.parallel.shard_files import whole_file, write_json
from blip2_jax.parallel.shard_jobs import (
    OtherSettings,
    Report,
    ShardJob,
    ShardsFailed,
    finished_reports,
    is_started,
    run_shards,
)
from blip2_jax.parallel.worker_places import available_cores
from blip2_jax.perf.compile_cache import enable_compile_cache

MIN_SHARD, MAX_SHARD = 64, 4096  # images
_SHARDS = 1000  # about so many, so that there is little to do again after a kill


@dataclasses.dataclass
class CaptionJob(ShardJob):
    """Write rows about each image of a set.

    Attributes:
      target: file or directory to write.
      form: a name of `caption_files.FORMATS`.
      images: a folder, files or glob patterns, or tars.
      model: the arguments of `blip2_jax.load`, with its `path`.
      request: what to write about each image.
      batch_size: images of a batch.
      shard_size: images of a shard; 0: by their number.
      compile_cache: see `enable_compile_cache`.
      count: number of images; set by `prepare`.
    """

    target: pathlib.Path
    form: str
    images: tuple[str, ...]
    model: Mapping[str, Any]
    request: ImageRequest
    batch_size: int = 32
    shard_size: int = 0
    compile_cache: str | None = None
    count: int = 0
    unit: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        """Check that the parts go together.

        Raises:
          ValueError: they do not.
        """
        if self.form in ("txt", "tars") and self.request.columns != ("caption",):
            raise ValueError(
                f"{self.form} holds captions; answers and scores go to .jsonl or .csv"
            )
        if self.form == "txt" and image_sets.is_tars(self.images):
            raise ValueError("text files stand beside image files; these are tars")

    @functools.cached_property
    def output(self) -> pathlib.Path:  # type: ignore[override]
        """Directory of the shards."""
        return self.target if self.form == "tars" else self._beside("parts")

    @property
    def broken_file(self) -> pathlib.Path:
        """List of the images that could not be read."""
        return self._beside("broken.jsonl")

    @property
    def report_file(self) -> pathlib.Path:
        """The settings and counts of a finished job."""
        return self._beside("report.json")

    def _beside(self, suffix: str) -> pathlib.Path:
        return self.target.parent / f"{self.target.name}.{suffix}"

    def prepare(self) -> None:
        """List the images and count them, before shards are run.

        Raises:
          FileNotFoundError: there are no images.
          FileExistsError: images have text files before the job starts.
          ValueError: two images would have the same text file.
        """
        is_listed = image_sets.is_tars(self.images) or image_sets.has_list(self.output)
        if not is_listed:
            image_sets.write_list(self.images, self.output)
        images = image_sets.open_images(self.images, self.output)
        if self.form == "txt" and not is_started(self):
            caption_files.check_text_files(images, self.target)
        self.count = len(images)
        if not self.shard_size:
            size = -(-self.count // _SHARDS)
            size = -(-size // MIN_SHARD) * MIN_SHARD
            self.shard_size = min(max(size, MIN_SHARD), MAX_SHARD)

    def request_settings(self) -> dict[str, Any]:
        """Return what the user asked for, as it is read back from JSON."""
        content = {
            "images": self.images,
            "format": self.form,
            "model": {name: str(value) for name, value in self.model.items()},
            "request": dataclasses.asdict(self.request),
        }
        settings: dict[str, Any] = json.loads(json.dumps(content))
        return settings

    def settings(self) -> Mapping[str, Any]:
        """Return what the output depends on; see `ShardJob`."""
        sizes = {"count": self.count, "shard_size": self.shard_size}
        return self.request_settings() | sizes

    def num_shards(self) -> int:
        """Return the number of shards."""
        return -(-self.count // self.shard_size)

    def file_name(self, shard: int) -> str:
        """Return the name of a shard's file."""
        return f"{shard:06d}.{caption_files.FORMATS[self.form]}"

    def _range(self, shard: int) -> tuple[int, int]:
        start = shard * self.shard_size
        return start, min(start + self.shard_size, self.count)

    def size(self, shard: int) -> int:
        """Return the number of images in a shard."""
        start, stop = self._range(shard)
        return stop - start

    def open(self) -> None:
        """Load the model and open the images.

        Raises:
          ValueError: the model cannot do what is asked.
        """
        enable_compile_cache(self.compile_cache)
        self._images = image_sets.open_images(self.images, self.output)
        self._model: Blip2 = load(**self.model, batch_size=self.batch_size)
        self._image_size = self.request.check_model(self._model)
        self._threads = len(available_cores())

    def write_shard(self, shard: int, path: pathlib.Path) -> Report:
        """Write the rows of a shard's images; see `ShardJob`."""
        model, request = self._model, self.request
        images = image_batches.load_images(
            self._images,
            *self._range(shard),
            size=self._image_size,
            batch_size=self.batch_size,
            threads=self._threads,
        )
        broken: list[BrokenSample] = []
        with caption_files.open_writer(
            self.form, path, request.columns, self.target
        ) as writer:
            for batch in image_batches.batches(images, self.batch_size):
                readable = [image for image in batch if image.broken is None]
                broken += [image.broken for image in batch if image.broken]
                if not readable:
                    continue
                pixels = image_batches.stack_pixels(readable)
                numbers = [image.number for image in readable]
                rows = request.rows(model, pixels, numbers)
                for image, of_image in zip(readable, rows, strict=True):
                    writer.write(image, of_image)
        return {
            "images": self.size(shard),
            "broken": [
                {"image": error.key, "reason": error.cause, "detail": error.detail}
                for error in broken
            ],
        }


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of the images.

    Attributes:
      images: number of images.
      broken: number of images that could not be read, by reason.
    """

    images: int
    broken: Mapping[str, int]


def caption_images(job: CaptionJob, **options: Any) -> Summary | None:
    """Run a job, or continue it.

    Args:
      job: the job.
      **options: `processes`, `part` and `runner` of `run_shards`.

    Returns:
      The summary; None if shards are left to other machines (`part`).

    Raises:
      OtherSettings: the output is of another job.
      ShardsFailed: see `run_shards`.
    """
    if (summary := _finished(job)) is None:
        alone = options.get("part", (0, 1)) == (0, 1)
        with _deleted_on_failure(job, active=alone and not job.output.exists()):
            job.prepare()
            run_shards(job, **options)
        try:
            summary = _finish(job)
        except FileNotFoundError:  # deleted by another machine, which has joined them
            if (summary := _finished(job)) is None:
                raise
    if summary is not None and job.form != "tars":
        _delete(job.output)
    return summary


@contextlib.contextmanager
def _deleted_on_failure(job: CaptionJob, active: bool) -> Iterator[None]:
    """Delete a new output directory if the job fails before a shard is finished.

    A wrong model or folder then leaves nothing that the right one would have to match.
    Shards that failed leave their tracebacks.
    """
    try:
        yield
    except ShardsFailed:
        raise
    except Exception:
        count = getattr(job, "count", 0) and job.num_shards()
        if active and not finished_reports(job, range(count)):
            _delete(job.output)
        raise


def _is_joined(job: CaptionJob) -> bool:
    """Return True if the output is one file."""
    return job.form in ("jsonl", "csv")


def _finished(job: CaptionJob) -> Summary | None:
    """Return the summary of a job that was finished before; None if it is not.

    Raises:
      OtherSettings: the output is of another job.
    """
    if not job.report_file.exists():
        if _is_joined(job) and job.target.exists() and not is_started(job):
            raise OtherSettings(
                f"{job.target} exists and was not written by this command; name "
                "another --out"
            )
        return None
    report = parse_json(job.report_file.read_bytes(), job.report_file)
    if report["settings"] != job.request_settings():
        raise OtherSettings(
            f"{job.target} is the output of other settings, which are in "
            f"{job.report_file}; name another --out"
        )
    return Summary(report["images"], report["broken"])


def _finish(job: CaptionJob) -> Summary | None:
    """Join the shards; None if some are left to other machines.

    The report is written last and marks the end.

    Raises:
      FileNotFoundError: a shard has gone.
    """
    reports = finished_reports(job, range(job.num_shards()))
    if len(reports) < job.num_shards():
        return _finished(job)
    if _is_joined(job):
        with whole_file(job.target) as path, path.open("wb") as file:
            if job.form == "csv":
                file.write(caption_files.csv_line(("image", *job.request.columns)))
            for shard in range(job.num_shards()):
                with (job.output / job.file_name(shard)).open("rb") as part:
                    shutil.copyfileobj(part, file)
    broken = list(itertools.chain.from_iterable(r["broken"] for r in reports))
    if broken:
        with whole_file(job.broken_file) as path:
            path.write_bytes(caption_files.json_lines(broken))
    counts = collections.Counter(entry["reason"] for entry in broken)
    summary = Summary(sum(r["images"] for r in reports), dict(counts))
    settings = {"settings": job.request_settings()}
    write_json(job.report_file, settings | dataclasses.asdict(summary))
    return summary


def _delete(directory: pathlib.Path) -> None:
    """Delete a directory, which another process may be deleting too."""
    if is_remote(directory):
        directory.rmtree(missing_ok=True)  # type: ignore[attr-defined]
    else:
        shutil.rmtree(directory, ignore_errors=True)
