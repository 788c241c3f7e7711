"""The job that writes a source as shards; see `blip2_jax.cli.prepare`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from blip2_jax.data.prepare.shard_files import FORMATS, Item
from blip2_jax.data.prepare.stored_image import StoredImage, stored_image
from blip2_jax.data.sources.base import BrokenSample, ImageKind, Record, Source
from blip2_jax.data.sources.content_digest import without_times
from blip2_jax.data.sources.reading import read_record
from blip2_jax.data.sources.registry import build_source
from blip2_jax.parallel.shard_jobs import Report, ShardJob
from blip2_jax.parallel.store_path import StorePath

# Causes of dropped records, beside those of broken samples.
NO_CAPTION = "no caption"
TOO_SMALL = "image too small"
TOO_LONG = "image too long"
DUPLICATE = "duplicate image"

COUNTS = ("kept", "captions", "questions", "resized")  # of a shard's report


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What is written, and which records are dropped.

    Attributes:
      format: "arrayrecord" or "tars".
      shard_size: number of records of the source in a shard, dropped ones included.
      resize: shorter side of larger images, in pixels; 0: images are not resized.
      quality: quality of the JPEGs of resized images.
      min_size: drop images whose shorter side has fewer pixels; 0: keep all.
      max_aspect: drop images whose longer side is more than so many times the shorter
        one; 0: keep all.
      drop_duplicates: drop images with the same bytes as an earlier one of the shard.
    """

    format: str = "arrayrecord"
    shard_size: int = 10_000
    resize: int = 0
    quality: int = 95
    min_size: int = 0
    max_aspect: float = 0.0
    drop_duplicates: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.format not in FORMATS:
            raise ValueError(
                f"format must be {' or '.join(FORMATS)}, not {self.format!r}"
            )
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, not {self.shard_size}")
        for name in ("resize", "min_size"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must not be negative, as {getattr(self, name)} is"
                )
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be in 1 .. 100, not {self.quality}")
        if self.max_aspect and not self.max_aspect >= 1:
            raise ValueError(
                f"max_aspect must be 0 or at least 1, not {self.max_aspect}"
            )


class PrepareJob(ShardJob):
    """Writes the records of a source, with their images, as shards.

    Args:
      spec: spec of the source.
      output: directory of the shards.
      options: what is written.

    Raises:
      ValueError: the source has no records or no pixels, or records share an image.
    """

    uses_model = False
    unit = "records"

    def __init__(
        self, spec: Mapping[str, Any], output: pathlib.Path, options: PrepareOptions
    ) -> None:
        self.output = output
        self.options = options
        self._spec = {key: value for key, value in spec.items() if key != "weight"}
        source = build_source(self._spec)
        _check_source(source)
        self._count = len(source)
        self._content = without_times(source.content())
        self.left_out = dict(source.left_out)
        self._source: Source | None = None

    def settings(self) -> Mapping[str, Any]:
        """Return what the shards depend on; see `ShardJob`."""
        return {
            "job": "prepare",
            "source": self._spec,
            "records": self._count,
            "content": self._content,
            **dataclasses.asdict(self.options),
        }

    def num_shards(self) -> int:
        """Return the number of shards."""
        return -(-self._count // self.options.shard_size)

    def file_name(self, shard: int) -> str:
        """Return the name of a shard's file."""
        suffix = FORMATS[self.options.format].suffix
        return f"data-{shard:05d}-of-{self.num_shards():05d}{suffix}"

    def size(self, shard: int) -> int:
        """Return the number of records of a shard; see `ShardJob`."""
        return len(self._indices(shard))

    def open(self) -> None:
        """Open the source."""
        self._source = build_source(self._spec)

    def write_shard(self, shard: int, path: pathlib.Path) -> Report:
        """Write a shard.

        Args:
          shard: index of the shard.
          path: file to write.

        Returns:
          "kept", "captions" and "questions" count what the shard holds, "resized" its
          images that were resized; "sha256" is that of the file; "dropped" lists the
          other records: index in the source, key, cause, detail.
        """
        report: Report = {**dict.fromkeys(COUNTS, 0), "dropped": []}
        with _local_file(path) as file:
            write = FORMATS[self.options.format].write
            report["sha256"] = write(file, self._items(shard, report))
        return report

    def _indices(self, shard: int) -> range:
        """Return the indices of a shard's records in the source."""
        size = self.options.shard_size
        return range(shard * size, min((shard + 1) * size, self._count))

    def _items(self, shard: int, report: Report) -> Iterator[Item]:
        """Yield the records of a shard that are kept, and complete its report."""
        assert self._source is not None
        seen: set[bytes] = set()
        for index in self._indices(shard):
            try:
                record, image = self._read(self._source, index, seen)
            except BrokenSample as error:
                report["dropped"].append(_dropped(index, error))
                continue
            yield Item(index, record, image)
            report["kept"] += 1
            report["captions"] += len(record.captions)
            report["questions"] += len(record.questions)
            report["resized"] += image.file is not image.original

    def _read(
        self, source: Source, index: int, seen: set[bytes]
    ) -> tuple[Record, StoredImage]:
        """Read a record and its image.

        Args:
          source: the source.
          index: index of the record.
          seen: digests of the shard's images so far; that of this image is added.

        Raises:
          BrokenSample: the record is dropped.
        """
        options = self.options
        record = read_record(source, index)
        if not record.questions and not any(map(str.strip, record.captions)):
            raise BrokenSample(NO_CAPTION, record.key)
        image = stored_image(source, index, record.key, options.resize, options.quality)
        shorter, longer = sorted(image.size)
        sides = "x".join(map(str, image.size))
        if shorter < options.min_size:
            raise BrokenSample(TOO_SMALL, record.key, sides)
        if options.max_aspect and longer > options.max_aspect * shorter:
            raise BrokenSample(TOO_LONG, record.key, sides)
        if options.drop_duplicates:
            digest = hashlib.sha256(image.original.data).digest()
            if digest in seen:
                raise BrokenSample(DUPLICATE, record.key)
            seen.add(digest)
        return record, image


@contextlib.contextmanager
def _local_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a local file to write for a path; one for a store is uploaded at the end."""
    if not isinstance(path, StorePath):
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / path.name
        yield file
        path.upload(file)


def _check_source(source: Source) -> None:
    """Check that a source can be written.

    Raises:
      ValueError: it cannot.
    """
    if source.image_kind is not ImageKind.PIXELS:
        raise ValueError(f"{source.name} has no images to write")
    if not len(source):
        raise ValueError(f"{source.name} is empty")
    if source.num_images != len(source):
        raise ValueError(
            f"records of {source.name} share images; prepare the source inside it, and "
            "put that kind around the result"
        )


def _dropped(index: int, error: BrokenSample) -> dict[str, Any]:
    """Describe a dropped record in the report."""
    return {
        "record": index,
        "key": error.key,
        "cause": error.cause,
        "detail": error.detail,
    }
