"""The manifest of a feature cache: which encoder, images and options made it.

`features.json` is written when all shards are finished, so that a directory without it
is no cache yet.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from blip2_jax.data.feature_origin import FeatureOrigin
from blip2_jax.data.feature_records import DTYPES, FeatureDtype
from blip2_jax.parallel.files import FileFormatError, parse_json

MANIFEST = "features.json"
FORMAT = 1
_SUFFIX = ".array_record"
_MAX = 2**40  # of counts


@dataclasses.dataclass(frozen=True)
class CachedData:
    """A data source whose images are in a cache.

    Attributes:
      name: name of the source.
      records: number of its records.
      images: number of its images.
      group_size: see `data.sources.base.Source`.
    """

    name: str
    records: int
    images: int
    group_size: int


@dataclasses.dataclass(frozen=True)
class FeatureManifest:
    """The content of a manifest.

    Attributes:
      origin: encoder and crops; `cache` is the directory that was read.
      dtype: storage of the features.
      augmentation: seed and fields of the `ImageConfig` of random crops; {}: whole
        images.
      records_per_shard: records of every shard but the last.
      sources: the cached sources; their records follow each other.
      shard_bytes: size of every shard.
      shard_digests: SHA-256 of every shard.
      broken: number of broken records and images, by cause.
    """

    origin: FeatureOrigin
    dtype: FeatureDtype
    augmentation: Mapping[str, Any]
    records_per_shard: int
    sources: tuple[CachedData, ...]
    shard_bytes: tuple[int, ...]
    shard_digests: tuple[str, ...]
    broken: Mapping[str, int]

    @property
    def records(self) -> int:
        """Number of records in the cache."""
        return sum(source.records for source in self.sources)

    @property
    def records_per_entry(self) -> int:
        """ArrayRecord records of each record: one of texts, and the crops."""
        return 1 + self.origin.crops

    def shard_records(self, shard: int) -> int:
        """Return the number of records in a shard."""
        return min(
            self.records_per_shard, self.records - shard * self.records_per_shard
        )


def shard_name(shard: int, num_shards: int) -> str:
    """Return the file name of a shard."""
    return f"features-{shard:05}-of-{num_shards:05}{_SUFFIX}"


def is_feature_cache(folder: pathlib.Path) -> bool:
    """Return True for the directory of a cache, complete or not."""
    return (folder / MANIFEST).is_file() or any(folder.glob(f"features-*{_SUFFIX}"))


def manifest_text(manifest: FeatureManifest) -> str:
    """Return the JSON of a manifest."""
    fields = dataclasses.asdict(manifest)
    del fields["origin"]["cache"]
    return json.dumps({"format": FORMAT, **fields}, indent=1, sort_keys=True) + "\n"


def read_manifest(directory: pathlib.Path) -> FeatureManifest:
    """Read and check the manifest of a cache.

    Raises:
      FileNotFoundError: there is none.
      FileFormatError: it is damaged, or was written by a later version.
    """
    path = directory / MANIFEST
    if not path.is_file():
        hint = ""
        if (directory / "job.json").is_file():
            hint = (
                ": the cache is not complete; run the same `blip2-jax cache_features` "
                "again, which writes the missing shards"
            )
        raise FileNotFoundError(f"{path} does not exist{hint}")
    fields = parse_json(path.read_bytes(), path)
    try:
        return _manifest(fields, str(directory))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{path} is damaged: {error!r}") from None


def _manifest(fields: dict[str, Any], directory: str) -> FeatureManifest:
    """Make a manifest of the content of its file.

    Raises:
      KeyError, TypeError, ValueError, AttributeError: a field is missing or invalid.
    """
    if fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']!r} of another version")
    if fields["dtype"] not in DTYPES:
        raise ValueError(f"dtype {fields['dtype']!r}, not one of {', '.join(DTYPES)}")
    origin = fields["origin"]
    manifest = FeatureManifest(
        origin=FeatureOrigin(
            cache=directory,
            encoder=_text(origin["encoder"]),
            digest=_text(origin["digest"]),
            precision=_text(origin["precision"]),
            num_tokens=_count(origin["num_tokens"]),
            width=_count(origin["width"]),
            crops=_count(origin["crops"]),
            sizes=dict(origin["sizes"].items()),
        ),
        dtype=fields["dtype"],
        augmentation=dict(fields["augmentation"].items()),
        records_per_shard=_count(fields["records_per_shard"]),
        sources=tuple(map(_source, fields["sources"])),
        shard_bytes=tuple(_count(size) for size in fields["shard_bytes"]),
        shard_digests=tuple(_text(digest) for digest in fields["shard_digests"]),
        broken={_text(k): _count(n) for k, n in fields["broken"].items()},
    )
    if not manifest.sources:
        raise ValueError("no sources")
    shards = math.ceil(manifest.records / manifest.records_per_shard)
    lengths = len(manifest.shard_bytes), len(manifest.shard_digests)
    if lengths != (shards, shards):
        raise ValueError(
            f"{lengths[0]} sizes and {lengths[1]} digests of {shards} shards"
        )
    return manifest


def _source(fields: Mapping[str, Any]) -> CachedData:
    """Make the entry of a source; the same errors as `_manifest`."""
    source = CachedData(
        name=_text(fields["name"]),
        records=_count(fields["records"]),
        images=_count(fields["images"]),
        group_size=_count(fields["group_size"]),
    )
    if source.images > source.records or source.records % source.group_size:
        raise ValueError(f"impossible counts of {source.name}")
    return source


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not an integer")
    if not 1 <= value < _MAX:
        raise ValueError(f"{value} is not in 1 .. {_MAX}")
    return value
