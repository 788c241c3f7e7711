"""Size and time of a feature cache, known before it is written."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import pathlib
import shutil

from blip2_jax.data.feature_origin import FeatureOrigin
from blip2_jax.inference.feature_cache import FeatureCacheJob
from blip2_jax.parallel.paths import is_remote
from blip2_jax.parallel.shard_jobs import read_reports

# Of a shard beside its features: two blocks of ArrayRecord. Texts and the headers of
# records add about a kilobyte to a record.
_SHARD_OVERHEAD, _RECORD_OVERHEAD = 2**17, 1000


@dataclasses.dataclass(frozen=True)
class CacheEstimate:
    """The cost of a cache.

    Attributes:
      records: number of records.
      images: number of images, which are encoded once.
      record_bytes: bytes of the features of a record.
      num_bytes: bytes of all shards.
      seconds: time on one device, reading of the images included.
    """

    records: int
    images: int
    record_bytes: int
    num_bytes: int
    seconds: float

    def __str__(self) -> str:
        """Format in one line."""
        return (
            f"{self.images:,} images, {_bytes(self.num_bytes)} "
            f"({_bytes(self.record_bytes)} an image), about {_time(self.seconds)} "
            "on one device like this"
        )


class NoSpace(OSError):
    """The disk is too small for a cache."""


def inspect(job: FeatureCacheJob, in_this_process: bool = True) -> CacheEstimate:
    """Open the encoder of a job, time it, and set `job.origin`.

    Args:
      job: the job.
      in_this_process: False uses another process, so that this one does not occupy the
        devices that workers need.
    """
    if in_this_process:
        job.origin, seconds = job.inspect()
    else:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            job.origin, seconds = pool.submit(_inspect, job).result()
    images = sum(source.images for source in job.sources)
    return CacheEstimate(
        records=job.records,
        images=images,
        record_bytes=job.record_bytes,
        num_bytes=_num_bytes(job, images, job.num_shards()),
        seconds=seconds * images,
    )


def check_space(job: FeatureCacheJob) -> None:
    """Check that a local disk has enough space for the missing shards.

    Raises:
      NoSpace: the disk is too small.
    """
    if is_remote(job.output):
        return
    shards = job.num_shards()
    missing = shards - len(read_reports(job, range(shards)))
    images = sum(source.images for source in job.sources)
    needed = _num_bytes(job, images, shards) * missing // shards
    folder = pathlib.Path(job.output).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise NoSpace(
            f"{job.output} needs {_bytes(needed)} for {missing} shards, but the disk "
            f"has {_bytes(free)} free"
        )


def _inspect(job: FeatureCacheJob) -> tuple[FeatureOrigin, float]:
    return job.inspect()


def _num_bytes(job: FeatureCacheJob, images: int, shards: int) -> int:
    """Return about the bytes of all shards."""
    features = images * job.record_bytes
    return features + job.records * _RECORD_OVERHEAD + shards * _SHARD_OVERHEAD


def _bytes(count: float) -> str:
    """Format a number of bytes."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _time(seconds: float) -> str:
    """Format a time."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 86400:,.1f} days"
