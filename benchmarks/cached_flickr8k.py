"""Write the features of Flickr8k as a cache: `python -m benchmarks.cached_flickr8k`.

The figures of docs/flickr8k.md use features of a MobileNetV2, which is no encoder of
this package. This script stores them as `blip2-jax cache_features` stores those of a
ViT, so that runs on an int8 cache can be compared with runs on `features.npy`:

    python -m benchmarks.cached_flickr8k --features features/flickr8k --data \
        data/flickr8k --out cache/flickr8k --dtype int8
    blip2-jax train --config flickr8k_itc --data cache/flickr8k/train --workdir runs/i8
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from blip2_jax.configs.flickr8k_stage1 import photos
from blip2_jax.data.feature_manifest import (
    MANIFEST,
    CachedData,
    FeatureManifest,
    manifest_text,
    shard_name,
)
from blip2_jax.data.feature_origin import FeatureOrigin
from blip2_jax.data.feature_records import (
    DTYPES,
    CachedRecord,
    FeatureDtype,
    pack_features,
    pack_record,
)
from blip2_jax.data.record_files import write_records
from blip2_jax.data.sources.base import Source
from blip2_jax.data.sources.registry import build_source


def main() -> None:
    """Write a cache of each split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", required=True, help="directory of the splits")
    parser.add_argument("--data", required=True, help="directory of the tars")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--dtype", choices=DTYPES, default="int8")
    parser.add_argument("--splits", nargs="+", default=["train", "val", "test"])
    options = parser.parse_args()
    paths: Any = {"features": options.features, "data": options.data}
    for split in options.splits:
        source = build_source(photos(paths, split))
        write_cache(source, options.out / split, options.dtype)
        print(f"{options.out / split}: {len(source)} records")


def write_cache(source: Source, out: pathlib.Path, dtype: FeatureDtype) -> None:
    """Write the records of a source of features as a cache of one shard."""
    out.mkdir(parents=True)
    size, digest = write_records(out / shard_name(0, 1), records(source, dtype))
    tokens, width = source.load_features(0).shape
    manifest = FeatureManifest(
        origin=FeatureOrigin(
            cache=str(out),
            encoder=source.name,
            digest="unknown",
            sizes={},
            precision="float32",
            num_tokens=tokens,
            width=width,
            crops=1,
        ),
        dtype=dtype,
        augmentation={},
        records_per_shard=len(source),
        sources=(CachedData(source.name, len(source), source.num_images, 1),),
        shard_bytes=(size,),
        shard_digests=(digest,),
        broken={},
    )
    (out / MANIFEST).write_text(manifest_text(manifest))


def records(source: Source, dtype: FeatureDtype) -> Iterator[bytes]:
    """Yield texts and features of each record."""
    for index in range(len(source)):
        record = dataclasses.replace(source.record(index), image_id=index)
        yield pack_record(CachedRecord(record, None, index))
        features = source.load_features(index)
        yield pack_features(features.astype(np.float32), dtype)


if __name__ == "__main__":
    main()
