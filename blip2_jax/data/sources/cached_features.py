"""Features of a frozen image encoder that `blip2-jax cache_features` wrote.

The records are those of the sources that were cached, in their order and with their
texts, so that training on the cache sees the same batches as training on the images.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray as Array

from blip2_jax.data.feature_manifest import (
    CachedData,
    FeatureManifest,
    manifest_text,
    read_manifest,
    shard_name,
)
from blip2_jax.data.feature_records import (
    CachedRecord,
    unpack_features,
    unpack_record,
)
from blip2_jax.data.record_files import RecordFiles
from blip2_jax.data.sources.base import BrokenSample, ImageKind, Record, Source
from blip2_jax.data.sources.content_digest import Digests
from blip2_jax.data.sources.features import NO_ROW, NO_TEXT, join_texts
from blip2_jax.data.sources.registry import build_source
from blip2_jax.parallel.files import FileFormatError
from blip2_jax.parallel.paths import as_path, is_remote

DAMAGED = "damaged feature cache"  # cause of broken samples


class CachedFeaturesSource(Source):
    """Records of a feature cache.

    Args:
      path: the directory.
      part: number of the cached source to take, from 0, if the cache holds several;
        None: all.
      texts: spec of a source whose texts replace those of the cache, joined by key;
        None: the texts of the cache.

    Raises:
      FileNotFoundError: the directory, its manifest or a shard does not exist.
      FileFormatError: the manifest or the size of a shard is wrong.
      ValueError: there is no such part, no key has a text in `texts`, or the path is on
        an object store.
    """

    image_kind = ImageKind.FEATURES

    def __init__(
        self,
        path: str,
        part: int | None = None,
        texts: Mapping[str, Any] | None = None,
    ):
        if is_remote(path):
            raise ValueError(
                f"{path}: cached features are read at random from a local or mounted "
                "disk; copy the directory there"
            )
        self._path = as_path(path)
        self._manifest = read_manifest(self._path)
        self._check_shards()
        self.name = f"cached_features:{path}" + ("" if part is None else f" ({part})")
        self.feature_origin = self._manifest.origin
        self._parts = self._select(part)
        before = self._manifest.sources[: part or 0]
        self._first = sum(source.records for source in before)
        self._first_image = sum(source.images for source in before)
        self.group_size = self._parts[0].group_size
        if any(each.group_size != self.group_size for each in self._parts):
            self.group_size = 1
        self._files = RecordFiles()
        self._texts = None if texts is None else build_source(texts)
        self._rows = np.zeros(0, np.int64)
        if self._texts is not None:
            self._rows, self.left_out = join_texts(self.name, self.keys(), self._texts)

    def _select(self, part: int | None) -> Sequence[CachedData]:
        """Return the cached sources of a part."""
        sources = self._manifest.sources
        if part is None:
            return sources
        if not 0 <= part < len(sources):
            raise ValueError(
                f"{self._path} has {len(sources)} parts, from 0, and no part {part}"
            )
        return sources[part : part + 1]

    def _check_shards(self) -> None:
        """Compare the size of every shard with the manifest."""
        sizes = self._manifest.shard_bytes
        for shard, size in enumerate(sizes):
            path = self._path / shard_name(shard, len(sizes))
            found = path.stat().st_size
            if found != size:
                raise FileFormatError(
                    f"{path} has {found} bytes, not {size} as {self._path} says: it "
                    "is truncated or was replaced"
                )

    def __len__(self) -> int:
        return sum(part.records for part in self._parts)

    @property
    def num_images(self) -> int:
        """Number of images; see `Source`."""
        if self._texts is not None:
            return self._texts.num_images
        return sum(part.images for part in self._parts)

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        if self._texts is None:
            record = self._cached(index).readable()
            image_id = record.image_id - self._first_image
            return dataclasses.replace(record, image_id=image_id)
        row = int(self._rows[index])
        if row == NO_ROW:
            raise BrokenSample(NO_TEXT, self._cached(index).readable().key)
        return self._texts.record(row)

    def iterate_keys(self) -> Iterator[str]:
        """Yield the keys of all records, "" for broken ones; reads all texts."""
        for index in range(len(self)):
            try:
                yield self._cached(index).readable().key
            except BrokenSample:
                yield ""

    def check_image(self, index: int) -> None:
        """Check that the image was whole when it was cached; see `Source`."""
        self._cached(index).check_image()

    def content(self) -> Digests:
        """Return digests of the cache, which those of its shards are part of."""
        origin = dataclasses.replace(self._manifest.origin, encoder="")  # may move
        text = manifest_text(dataclasses.replace(self._manifest, origin=origin))
        texts = {} if self._texts is None else self._texts.content()
        return {
            "cached features": hashlib.sha256(text.encode()).hexdigest(),
            **{k: v for k, v in texts.items() if not k.startswith("image ")},
        }

    def load_features(self, index: int, crop: int = 0) -> Shaped[Array, "P D"]:
        """Load the features of a record in bfloat16; see `Source`."""
        cached, manifest = self._cached(index), self._manifest
        cached.check_image()
        if cached.features != self._first + index:  # of another record
            self._cached(cached.features - self._first).check_image()
        origin = manifest.origin
        name = f"record {self._first + index} of {self._path}"
        data = self._read(cached.features, 1 + crop)
        try:
            return unpack_features(
                data, manifest.dtype, origin.num_tokens, origin.width
            )
        except ValueError as error:
            raise BrokenSample(DAMAGED, name, str(error)) from None

    def _cached(self, index: int) -> CachedRecord:
        """Read the texts of a record; image ids count from the cache's first image."""
        return unpack_record(
            self._read(self._first + index, 0), f"record {index} of {self._path}"
        )

    def _read(self, entry: int, record: int) -> bytes:
        """Read a record of an entry of the cache.

        Raises:
          BrokenSample: the file is damaged.
        """
        manifest: FeatureManifest = self._manifest
        if not 0 <= entry < manifest.records:
            raise BrokenSample(DAMAGED, f"record {entry} of {self._path}", "no such")
        shard, row = divmod(entry, manifest.records_per_shard)
        stride = manifest.records_per_entry
        path = self._path / shard_name(shard, len(manifest.shard_bytes))
        count = manifest.shard_records(shard) * stride
        try:
            return self._files.read(path, row * stride + record, count)
        except (FileFormatError, OSError) as error:
            raise BrokenSample(DAMAGED, f"record {entry}", str(error)) from None
