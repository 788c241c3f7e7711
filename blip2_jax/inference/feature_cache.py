"""The job that writes a feature cache: images through the frozen encoder, to shards.

A shard depends on the encoder, the images of its records and the options alone. The
records are those of the sources, in their order. Broken ones are kept as such, so that
training on the cache replaces the same samples as training on the images.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.data.feature_manifest import shard_name
from blip2_jax.data.feature_origin import FeatureOrigin
from blip2_jax.data.feature_records import (
    CachedRecord,
    FeatureDtype,
    num_bytes,
    pack_features,
    pack_record,
    unpack_features,
)
from blip2_jax.data.record_files import write_records
from blip2_jax.data.sources.base import ImageKind
from blip2_jax.inference.cache_options import CacheOptions, EncoderRecipe
from blip2_jax.inference.cached_images import CachedImages, ImageEntry
from blip2_jax.inference.image_encoder import ImageEncoder
from blip2_jax.parallel.shard_jobs import Report, ShardJob

NON_FINITE = "non-finite features"  # cause of broken samples
_THREADS = 8  # that read images
_TIMED_CHUNKS = 3


class FeatureCacheJob(ShardJob):
    """Writes the features and texts of all records of some sources.

    Args:
      specs: source specs; weights are ignored.
      recipe: the encoder.
      options: what is written.
      output: directory of the cache.

    Raises:
      ValueError: the sources hold no pixels, or are empty.
    """

    unit = "records"

    def __init__(
        self,
        specs: Sequence[Mapping[str, Any]],
        recipe: EncoderRecipe,
        options: CacheOptions,
        output: pathlib.Path,
    ) -> None:
        self.output, self.options = output, options
        self._specs, self._recipe = tuple(specs), recipe
        self._images: CachedImages | None = CachedImages(self._specs)
        for source in self._images.sources:
            if source.image_kind is not ImageKind.PIXELS or not len(source):
                raise ValueError(f"{source.name} holds no images to encode")
        self.sources = self._images.describe()
        self._fingerprint = self._images.fingerprint()
        self._encoder: ImageEncoder | None = None
        self._origin: FeatureOrigin | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": None, "_encoder": None}

    @property
    def records(self) -> int:
        """Number of records."""
        return sum(source.records for source in self.sources)

    @property
    def origin(self) -> FeatureOrigin:
        """The encoder, known once `inspect` was called."""
        if self._origin is None:
            raise RuntimeError("call `inspect` first")
        return self._origin

    @origin.setter
    def origin(self, value: FeatureOrigin) -> None:
        self._origin = value

    @property
    def record_bytes(self) -> int:
        """Bytes of the features of a record."""
        origin = self.origin
        return self.options.num_crops * num_bytes(
            self.options.dtype, origin.num_tokens, origin.width
        )

    @property
    def records_per_shard(self) -> int:
        """Records of every shard but the last."""
        return self.options.shard_records(self.record_bytes)

    @property
    def augmentation(self) -> Mapping[str, Any]:
        """Seed and fields of the `ImageConfig` of the crops; {} for whole images."""
        options = self.options
        if options.num_crops == 1:
            return {}
        return {"seed": options.seed, **dataclasses.asdict(options.image)}

    def settings(self) -> Mapping[str, Any]:
        """Return what the shards depend on; see `ShardJob`."""
        origin = dataclasses.asdict(self.origin)
        del origin["cache"], origin["encoder"]  # names may change
        return {
            "job": "cache_features",
            "encoder": origin,
            "data": self._fingerprint,
            "dtype": self.options.dtype,
            "batch_size": self.options.batch_size,  # compilers round differently
            "augmentation": self.augmentation,
            "records_per_shard": self.records_per_shard,
        }

    def num_shards(self) -> int:
        """Return the number of shards."""
        return math.ceil(self.records / self.records_per_shard)

    def file_name(self, shard: int) -> str:
        """Return the name of a shard's file."""
        return shard_name(shard, self.num_shards())

    def size(self, shard: int) -> int:
        """Return the number of records in a shard."""
        first = shard * self.records_per_shard
        return min(self.records_per_shard, self.records - first)

    def open(self) -> None:
        """Open the sources and the encoder in this process."""
        if self._images is None:
            self._images = CachedImages(self._specs)
        if self._encoder is None:
            self._encoder = self._recipe.open()

    def inspect(self) -> tuple[FeatureOrigin, float]:
        """Open the encoder and encode some images.

        Returns:
          The encoder, and the seconds that a record takes.
        """
        self.open()
        encoder = self._open_encoder()
        config = encoder.config
        origin = FeatureOrigin(
            cache=str(self.output),
            encoder=encoder.name,
            digest=encoder.digest,
            sizes=config.stored_fields(),
            precision=encoder.precision,
            num_tokens=config.num_tokens,
            width=config.width,
            crops=self.options.num_crops,
        )
        chunks = self._chunks(0, min(self.records, _TIMED_CHUNKS * self.options.chunk))
        self._encode(next(chunks))  # compiles
        start, timed = time.perf_counter(), 0
        for entries in chunks:
            self._encode(entries)
            timed += len(entries)
        if not timed:  # all records are in one batch
            start, timed = time.perf_counter(), self.records
            for entries in self._chunks(0, self.records):
                self._encode(entries)
        return origin, (time.perf_counter() - start) / timed

    def write_shard(self, shard: int, path: pathlib.Path) -> Report:
        """Encode the images of a shard and write it; see `ShardJob`."""
        first = shard * self.records_per_shard
        last = first + self.size(shard)
        report = _ShardReport(self.options.dtype)
        size, digest = write_records(path, self._shard_records(first, last, report))
        counts = {"records": last - first, "bytes": size, "sha256": digest}
        return report.as_json() | counts

    def _shard_records(
        self, first: int, last: int, report: _ShardReport
    ) -> Iterator[bytes]:
        """Yield the texts and the features of each record of a shard."""
        for entries in self._chunks(first, last):
            features = self._encode(entries)
            for row, entry in enumerate(entries):
                yield from self._entry_records(entry, features[row], report)

    def _entry_records(
        self,
        entry: ImageEntry,
        features: Float[Array, "crops P D"],
        report: _ShardReport,
    ) -> Iterator[bytes]:
        """Yield the texts of a record, then the features of each crop."""
        cached = entry.cached
        finite = bool(np.isfinite(features.astype(np.float32)).all())
        if entry.images is not None and not finite:
            key = cached.record.key if cached.record else ""
            cached = dataclasses.replace(cached, broken=(NON_FINITE, key, ""))
        report.add_record(entry.index, cached)
        yield pack_record(cached)
        for crop in features:
            if entry.images is None or not finite:
                yield b""
                continue
            packed = pack_features(crop, self.options.dtype)
            report.add_features(crop, packed)
            yield packed

    def _encode(
        self, entries: Sequence[ImageEntry]
    ) -> Float[Array, "records crops P D"]:
        """Encode the crops of a chunk, which is padded to its full size."""
        encoder, options = self._open_encoder(), self.options
        size = encoder.config.image_size
        shape = (options.chunk, options.num_crops, size, size, 3)
        images: UInt8[Array, "records crops R R 3"] = np.zeros(shape, np.uint8)
        for row, entry in enumerate(entries):
            if entry.images is not None:
                images[row] = entry.images
        features = np.asarray(encoder.encode(images.reshape(-1, size, size, 3)))
        return features.reshape(*shape[:2], *features.shape[1:])

    def _chunks(self, first: int, last: int) -> Iterator[list[ImageEntry]]:
        """Yield the records of a range in chunks; threads read ahead."""
        assert self._images is not None
        images, options = self._images, self.options
        size = self._open_encoder().config.image_size
        config = dataclasses.replace(options.image, size=size)
        read = lambda index: images.read(index, options.num_crops, config, options.seed)
        records = grain.MapDataset.range(first, last).map(read)
        reading = grain.ReadOptions(_THREADS, 2 * options.chunk)
        chunk: list[ImageEntry] = []
        for entry in records.to_iter_dataset(reading):
            chunk.append(entry)
            if len(chunk) == options.chunk:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _open_encoder(self) -> ImageEncoder:
        assert self._encoder is not None  # `open` was called
        return self._encoder


class _ShardReport:
    """What happened in a shard: broken records, and the error of storage."""

    def __init__(self, dtype: FeatureDtype) -> None:
        self._dtype: FeatureDtype = dtype
        self._broken: list[list[Any]] = []
        self._images = 0
        self._squares = self._squared_errors = 0.0

    def add_record(self, index: int, cached: CachedRecord) -> None:
        """Count a record."""
        if cached.broken is not None:
            self._broken.append([index, *cached.broken])

    def add_features(self, features: Float[Array, "P D"], packed: bytes) -> None:
        """Count an image; the error of the first is measured, to save time."""
        self._images += 1
        if self._images == 1:
            values = features.astype(np.float32)
            stored = unpack_features(packed, self._dtype, *values.shape)
            self._squares = float(np.square(values).mean())
            difference = stored.astype(np.float32) - values
            self._squared_errors = float(np.square(difference).mean())

    def as_json(self) -> Report:
        """Return the report."""
        return {
            "broken": self._broken,
            "features": self._images,
            "squares": self._squares,
            "squared_errors": self._squared_errors,
        }
