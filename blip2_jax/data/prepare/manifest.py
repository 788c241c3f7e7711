"""The manifest of a prepared data set: what was kept, what was dropped and why."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from typing import Any

from blip2_jax.data.prepare.job import COUNTS, PrepareJob
from blip2_jax.parallel.shard_files import whole_file, write_json
from blip2_jax.parallel.shard_jobs import Report, finished_reports

MANIFEST, DROPPED = "manifest.json", "dropped.jsonl"


def write_manifest(job: PrepareJob) -> dict[str, Any] | None:
    """Write `manifest.json` and `dropped.jsonl` beside the shards.

    Returns:
      The manifest; None, and nothing is written, if a shard is not finished.
    """
    reports = finished_reports(job, range(job.num_shards()))
    if len(reports) < job.num_shards():
        return None
    lines = [item for report in reports for item in report["dropped"]]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with whole_file(job.output / DROPPED) as temporary:
        temporary.write_text(text, encoding="utf-8")
    manifest = _manifest(job, reports)
    write_json(job.output / MANIFEST, manifest)
    return manifest


def _manifest(job: PrepareJob, reports: Sequence[Report]) -> dict[str, Any]:
    """Return the content of `manifest.json`."""
    causes = collections.Counter(
        item["cause"] for report in reports for item in report["dropped"]
    )
    return {
        "settings": dict(job.settings()),
        **{name: sum(report[name] for report in reports) for name in COUNTS},
        "dropped": dict(sorted(causes.items())),
        "left_out_by_the_source": job.left_out,
        "shards": [
            {
                "file": job.file_name(shard),
                "kept": report["kept"],
                "sha256": report["sha256"],
            }
            for shard, report in enumerate(reports)
        ],
    }
