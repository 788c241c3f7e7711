"""The end of a feature cache: its manifest, and the list of what is broken."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from blip2_jax.data.feature_manifest import MANIFEST, FeatureManifest, manifest_text
from blip2_jax.inference.feature_cache import FeatureCacheJob
from blip2_jax.parallel.shard_files import write_json
from blip2_jax.parallel.shard_jobs import Report, finished_reports

BROKEN = "broken.jsonl"


def write_manifest(job: FeatureCacheJob) -> FeatureManifest | None:
    """Write `features.json` and `broken.jsonl` if all shards are finished.

    Args:
      job: the job; `inspect` was called.

    Returns:
      The manifest; None if shards are missing.
    """
    reports = finished_reports(job, range(job.num_shards()))
    if len(reports) < job.num_shards():
        return None
    broken = [_broken_line(item) for report in reports for item in report["broken"]]
    causes = collections.Counter(item["cause"] for item in broken)
    manifest = FeatureManifest(
        origin=job.origin,
        dtype=job.options.dtype,
        augmentation=job.augmentation,
        records_per_shard=job.records_per_shard,
        sources=job.sources,
        shard_bytes=tuple(report["bytes"] for report in reports),
        shard_digests=tuple(report["sha256"] for report in reports),
        broken=dict(sorted(causes.items())),
    )
    lines = "".join(json.dumps(item, sort_keys=True) + "\n" for item in broken)
    (job.output / BROKEN).write_text(lines)
    write_json(job.output / MANIFEST, json.loads(manifest_text(manifest)))
    return manifest


def relative_error(reports: Sequence[Report]) -> float:
    """Return the relative RMS error of storage, of the first image of each shard."""
    squares = sum(report["squares"] for report in reports)
    errors = sum(report["squared_errors"] for report in reports)
    return math.sqrt(errors / squares) if squares else 0.0


def training_specs(
    job: FeatureCacheJob, specs: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the sources for `config.data.train` that replace those of the images."""
    path = str(job.output)
    if len(specs) == 1:
        return [{"kind": "cached_features", "path": path}]
    return [
        {"kind": "cached_features", "path": path, "part": part}
        | ({"weight": spec["weight"]} if "weight" in spec else {})
        for part, spec in enumerate(specs)
    ]


def _broken_line(item: Sequence[Any]) -> dict[str, Any]:
    """Return what `broken.jsonl` says about a broken record."""
    return dict(zip(("record", "cause", "key", "detail"), item, strict=True))
