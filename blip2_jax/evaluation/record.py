"""What says which model, data, settings and machine a score belongs to."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

import blip2_jax
from blip2_jax.convert.files.checkpoint_files import digest
from blip2_jax.data.sources.base import Record
from blip2_jax.metrics import bootstrap
from blip2_jax.nn.trees import flatten

# What the draws of the intervals are, by task; printed into records.
DRAWN = {
    "retrieval": ("images for i2t, texts for t2i, images with their texts for r_mean"),
    "captioning": (
        "images; the word weights of CIDEr stay those of the whole set, METEOR has "
        "no interval (its scores of captions do not add up to that of a set)"
    ),
    "vqa": "questions",
}


def digest_of_parameters(params: PyTree) -> str:
    """SHA-256 over the path, type and values of every parameter in use.

    Of a run, a converted folder and an exported file it is the same where the values
    and the precision are. The parameters must be this process's own.
    """
    whole = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        array = np.asarray(leaf)
        line = f"{path} {array.dtype} {array.shape} {digest(array)}\n"
        whole.update(line.encode())
    return whole.hexdigest()


def digest_of_records(records: Sequence[Record]) -> str:
    """SHA-256 over keys, ids and texts of the evaluated records; not of pictures."""
    whole = hashlib.sha256()
    for record in records:
        questions = [
            [question.question_id, question.text, list(question.answers), question.kind]
            for question in record.questions
        ]
        told = [
            record.key,
            record.original_id,
            record.part,
            list(record.captions),
            questions,
        ]
        whole.update(json.dumps(told).encode() + b"\n")
    return whole.hexdigest()


def intervals_of(
    statistics: Mapping[str, bootstrap.Statistic],
    scores: Mapping[str, float],
    task: str,
    settings: Mapping[str, int],
) -> dict[str, Any]:
    """The record's `intervals` of those scores that have one, and how they were made.

    Args:
      statistics: of the examples.
      scores: of the record.
      task: see `DRAWN`.
      settings: "samples" and "seed" of the draws; no samples: no intervals.
    """
    if not settings["samples"]:
        return {}
    known = {name: statistics[name] for name in scores if name in statistics}
    found = bootstrap.intervals(known, **settings) if known else {}
    how = {"level": bootstrap.LEVEL, **settings, "drawn": DRAWN[task]}
    return {
        "intervals": {name: list(each) for name, each in found.items()},
        "bootstrap": how,
    }


def surroundings(seconds: float) -> dict[str, Any]:
    """Version, machine, time."""
    return {
        "version": blip2_jax.__version__,
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "machine": platform.machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }
