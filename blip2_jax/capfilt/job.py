"""CapFilt as a job over shards: one tar of images with the kept captions per shard."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.capfilt.candidates import (
    Candidate,
    RankedCaptions,
    collect_candidates,
    rank_candidates,
)
from blip2_jax.capfilt.counts import CapFiltCounts
from blip2_jax.capfilt.models import Captioner, ModelName, Ranker, Sampling
from blip2_jax.capfilt.open_models import open_captioner, open_ranker
from blip2_jax.data.broken_samples import TooManyBrokenSamples
from blip2_jax.data.prefetch import in_batches, map_ahead
from blip2_jax.data.sources.base import BrokenSample, ImageKind, Record, Source
from blip2_jax.data.sources.content_digest import without_times
from blip2_jax.data.sources.reading import (
    EncodedImage,
    broken_on_error,
    read_encoded,
    read_pixels,
    read_record,
)
from blip2_jax.data.sources.record_json import record_to_json
from blip2_jax.data.sources.registry import build_source
from blip2_jax.data.tar_writer import TarWriter, open_tar_writer
from blip2_jax.parallel.shard_jobs import Report, ShardJob

_BATCHES_AHEAD = 2  # of images that are read while the models work


@dataclasses.dataclass(frozen=True)
class CapFiltOptions:
    """What the captions depend on, besides the data.

    Attributes:
      captioner: the model that samples captions.
      ranker: the model that scores them.
      score: "itc" or "itm", for a ranker of stage 1; "" for its default.
      sampling: how captions are sampled.
      keep: number of captions to keep of each image.
      precision: of both models; see `blip2_jax.load`.
    """

    captioner: ModelName
    ranker: ModelName
    score: str = ""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    keep: int = 2
    precision: str | None = None


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """A record whose image has been read.

    Attributes:
      number: of the record in the data.
      record: its texts.
      file: its image as a file.
      captioner_image, ranker_image: its image as the models take it.
    """

    number: int
    record: Record
    file: EncodedImage
    captioner_image: UInt8[Array, "R R 3"]
    ranker_image: UInt8[Array, "R R 3"]


class CapFiltJob(ShardJob):
    """Caption and filter the records of some sources.

    The tar of a shard holds the images with their kept captions, in the order of the
    data; broken images are left out and counted in its report.

    Args:
      output: see `ShardJob`.
      specs: specs of the sources; their weights are ignored.
      options: what the captions depend on.
      shard_size: number of records of a shard.
      batch_size: number of images that the models work on at a time. Other sizes give
        the same captions up to rounding.
      max_broken_share: share of broken records in a shard above which it is an error.

    Raises:
      ValueError: a spec is wrong, or a source has no pixels.
      FileNotFoundError: a source does not exist.
    """

    unit = "images"

    def __init__(
        self,
        output: pathlib.Path,
        specs: Sequence[Mapping[str, Any]],
        options: CapFiltOptions,
        *,
        shard_size: int = 1000,
        batch_size: int = 32,
        max_broken_share: float = 0.1,
    ):
        self.output = output
        self._options, self._shard_size = options, shard_size
        self._batch_size, self._max_broken_share = batch_size, max_broken_share
        self._sources = [build_source(spec) for spec in specs]
        for source in self._sources:
            if source.image_kind is not ImageKind.PIXELS:
                raise ValueError(f"{source.name} has no images: nothing to caption")
        self._starts = np.cumsum([0, *map(len, self._sources)])
        self._models: tuple[Captioner, Ranker] | None = None

    def settings(self) -> dict[str, Any]:
        """Return what the output depends on; see `ShardJob`."""
        return {
            "job": "capfilt",
            "data": self._fingerprints,
            "shard_size": self._shard_size,
            **dataclasses.asdict(self._options),
        }

    def num_shards(self) -> int:
        """Return the number of shards."""
        return -(-int(self._starts[-1]) // self._shard_size)

    def size(self, shard: int) -> int:
        """Return the number of records of a shard; see `ShardJob`."""
        return len(self._numbers(shard))

    def file_name(self, shard: int) -> str:
        """Return the name of a shard's tar."""
        return f"{shard:06d}.tar"

    def open(self) -> None:
        """Load the models; see `ShardJob`."""
        options = self._options
        precision, size = options.precision, self._batch_size
        self._models = (
            open_captioner(options.captioner, options.sampling, precision, size),
            open_ranker(options.ranker, options.score, precision, size),
        )

    def write_shard(self, shard: int, path: pathlib.Path) -> Report:
        """Write the tar of a shard; see `ShardJob`.

        Raises:
          TooManyBrokenSamples: the share of broken records is too large.
        """
        numbers = self._numbers(shard)
        counts = CapFiltCounts()
        with open_tar_writer(path) as tar:
            loaded = self._readable(numbers, counts)
            for batch in in_batches(loaded, self._batch_size):
                self._write_batch(tar, batch, counts)
        if counts.broken.total() > self._max_broken_share * len(numbers):
            raise TooManyBrokenSamples(
                f"{counts.broken.total()} of the {len(numbers)} records of shard "
                f"{shard} are broken, the limit is a share of "
                f"{self._max_broken_share:g} (--max_broken_share): "
                f"{dict(counts.broken)}, the first: {counts.broken_places[0]}"
            )
        return counts.as_json()

    def _numbers(self, shard: int) -> range:
        """Return the numbers of a shard's records in the data."""
        start = shard * self._shard_size
        return range(start, min(start + self._shard_size, int(self._starts[-1])))

    def _readable(
        self, numbers: Sequence[int], counts: CapFiltCounts
    ) -> Iterator[_Loaded]:
        """Read records in threads; count the broken ones."""
        ahead = _BATCHES_AHEAD * self._batch_size
        for result in map_ahead(self._load, numbers, ahead=ahead):
            if isinstance(result, BrokenSample):
                counts.add_broken(result)
            else:
                yield result

    def _load(self, number: int) -> _Loaded | BrokenSample:
        """Read a record and its image; return what is wrong with it, if anything is."""
        captioner, ranker = self._opened()
        source, index = self._locate(number)
        try:
            record = read_record(source, index)
            pixels = read_pixels(source, index, record.key)
            with broken_on_error("unusable image", record.key):
                images = captioner.prepare(pixels), ranker.prepare(pixels)
            return _Loaded(
                number, record, read_encoded(source, index, record.key), *images
            )
        except BrokenSample as error:
            return error

    def _write_batch(
        self, tar: TarWriter, batch: Sequence[_Loaded], counts: CapFiltCounts
    ) -> None:
        """Caption and rank some images and write those that have captions."""
        captioner, _ = self._opened()
        sampled = captioner.sample(
            [loaded.captioner_image for loaded in batch],
            [loaded.number for loaded in batch],
        )
        captioned = []
        for loaded, texts in zip(batch, sampled, strict=True):
            counts.add_empty(loaded.record.captions, texts)
            candidates = collect_candidates(loaded.record.captions, texts)
            if candidates:
                captioned.append((loaded, candidates))
            else:
                counts.without_captions += 1
        for (loaded, _), ranked in zip(captioned, self._rank(captioned), strict=True):
            counts.add_image(ranked)
            content = record_to_json(loaded.record) | ranked.as_json()
            tar.write(f"{loaded.number:09d}", loaded.file, content)

    def _rank(
        self, captioned: Sequence[tuple[_Loaded, Sequence[Candidate]]]
    ) -> list[RankedCaptions]:
        """Rank the candidates of each image.

        Raises:
          ValueError: a score is not finite.
        """
        if not captioned:
            return []
        scores = self._opened()[1].score(
            [loaded.ranker_image for loaded, _ in captioned],
            [[each.text for each in candidates] for _, candidates in captioned],
        )
        for (loaded, _), row in zip(captioned, scores, strict=True):
            if not np.isfinite(row).all():
                raise ValueError(
                    f"{self._options.ranker.path}: the score of a caption of "
                    f"{loaded.record.key} is NaN or infinite"
                )
        return [
            rank_candidates(candidates, row, self._options.keep)
            for (_, candidates), row in zip(captioned, scores, strict=True)
        ]

    @functools.cached_property
    def _fingerprints(self) -> list[dict[str, Any]]:
        return [_fingerprint(source) for source in self._sources]

    def _opened(self) -> tuple[Captioner, Ranker]:
        assert self._models is not None  # `open` has been called
        return self._models

    def _locate(self, number: int) -> tuple[Source, int]:
        """Return the source of a record, and its index there."""
        source = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._sources[source], number - int(self._starts[source])


def _fingerprint(source: Source) -> dict[str, Any]:
    """Summarise a source, without the times of its files, which copies change."""
    fingerprint: dict[str, Any] = source.fingerprint()
    return fingerprint | {"content": without_times(fingerprint["content"])}
