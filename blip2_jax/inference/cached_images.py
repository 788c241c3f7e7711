"""The records of some sources and the images that the encoder sees for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.feature_manifest import CachedData
from blip2_jax.data.feature_records import CachedRecord
from blip2_jax.data.images import ImageConfig, evaluation_image, training_image
from blip2_jax.data.order import RngPurpose, position_rng
from blip2_jax.data.sources.base import BrokenSample, Record, Source
from blip2_jax.data.sources.content_digest import without_times
from blip2_jax.data.sources.reading import broken_on_error, read_pixels, read_record
from blip2_jax.data.sources.registry import build_source

_NO_RECORD = -1


@dataclasses.dataclass(frozen=True)
class ImageEntry:
    """A record and its images.

    Attributes:
      index: index of the record in all sources.
      cached: the texts, or what is broken.
      images: the crops; None if the image is broken, or is that of an earlier record.
    """

    index: int
    cached: CachedRecord
    images: UInt8[Array, "crops R R 3"] | None


class CachedImages:
    """Records of some sources, numbered through, with ids of images that are unique.

    Args:
      specs: source specs; weights are ignored.

    Attributes:
      sources: the sources.
    """

    def __init__(self, specs: Sequence[Mapping[str, Any]]) -> None:
        self.sources: list[Source] = [build_source(spec) for spec in specs]
        sizes = [len(source) for source in self.sources]
        images = [source.num_images for source in self.sources]
        self._starts = np.cumsum([0, *sizes])
        self._first_images = np.cumsum([0, *images])
        self._first_records = [_first_records(source) for source in self.sources]

    def describe(self) -> tuple[CachedData, ...]:
        """Return what the manifest says about the sources."""
        return tuple(
            CachedData(
                source.name, len(source), source.num_images, int(source.group_size)
            )
            for source in self.sources
        )

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return the fingerprints of the sources, which hold no paths and times."""
        prints: list[dict[str, Any]] = [{**s.fingerprint()} for s in self.sources]
        for fields in prints:
            del fields["name"]
            fields["content"] = without_times(fields["content"])
        return prints

    def read(
        self, index: int, crops: int, config: ImageConfig, seed: int
    ) -> ImageEntry:
        """Read a record and its images.

        Args:
          index: index of the record in all sources.
          crops: number of random crops; 1: the whole image, as in evaluation.
          config: size and augmentation.
          seed: seed of the crops.
        """
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        source, row = self.sources[number], index - int(self._starts[number])
        try:
            record = read_record(source, row)
        except BrokenSample as error:
            return ImageEntry(index, CachedRecord(None, _broken(error), index), None)
        features = self._first_record(number, record, index)
        image_id = record.image_id + int(self._first_images[number])
        record = dataclasses.replace(record, image_id=image_id)
        cached = CachedRecord(record, None, features)
        if features != index:
            return ImageEntry(index, cached, None)
        try:
            images = _images(source, row, record.key, index, crops, config, seed)
        except BrokenSample as error:
            cached = dataclasses.replace(cached, broken=_broken(error))
            return ImageEntry(index, cached, None)
        return ImageEntry(index, cached, images)

    def _first_record(self, number: int, record: Record, index: int) -> int:
        """Return the index of the first record with the image of a record."""
        first = self._first_records[number]
        if first is None:
            return index
        return int(self._starts[number] + first[record.image_id])


def _first_records(source: Source) -> Array | None:
    """Return the first record of each image; None if no two records share one."""
    if source.num_images == len(source):
        return None
    first = np.full(source.num_images, _NO_RECORD, np.int64)
    for index in range(len(source)):
        try:
            image = read_record(source, index).image_id
        except BrokenSample:
            continue
        if first[image] == _NO_RECORD:
            first[image] = index
    return first


def _broken(error: BrokenSample) -> tuple[str, str, str]:
    return error.cause, error.key, error.detail


def _images(
    source: Source,
    row: int,
    key: str,
    index: int,
    crops: int,
    config: ImageConfig,
    seed: int,
) -> UInt8[Array, "crops R R 3"]:
    """Return the crops of an image; each is a function of seed, record and crop."""
    if crops == 1:
        pixels = read_pixels(source, row, key)
        with broken_on_error("unusable image", key):
            return evaluation_image(pixels, config.size)[None]
    pixels = read_pixels(source, row, key, config.at_least)
    generators = (
        position_rng(seed, index * crops + crop, RngPurpose.IMAGE)
        for crop in range(crops)
    )
    with broken_on_error("unusable image", key):
        return np.stack([training_image(pixels, config, rng) for rng in generators])
