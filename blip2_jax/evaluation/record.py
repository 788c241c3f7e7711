"""Parts of an evaluation's record: digests and intervals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from blip2_jax.convert.files.digests import digest
from blip2_jax.data.sources.base import Record
from blip2_jax.metrics import bootstrap
from blip2_jax.nn.trees import flatten

# What the bootstrap draws, by task; a part of the record.
DRAWN = {
    "retrieval": "images for i2t, texts for t2i, images with their texts for r_mean",
    "captioning": (
        "images; the word weights of CIDEr stay those of the whole set, METEOR has "
        "no interval (its scores of captions do not add up to that of a set)"
    ),
    "vqa": "questions",
}


def params_digest(params: PyTree) -> str:
    """Compute the SHA-256 of the path, dtype, shape and values of every parameter.

    A run, a converted folder and an exported file have the same digest if their values
    and precision are the same. The parameters must be addressable by this process.
    """
    sha = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        for array in map(np.asarray, jax.tree.leaves(leaf)):  # two if it is quantised
            line = f"{path} {array.dtype} {array.shape} {digest(array)}\n"
            sha.update(line.encode())
    return sha.hexdigest()


def records_digest(records: Sequence[Record]) -> str:
    """Compute the SHA-256 of the keys, ids and texts of records (not of images)."""
    sha = hashlib.sha256()
    for record in records:
        questions = [
            [question.question_id, question.text, list(question.answers), question.kind]
            for question in record.questions
        ]
        fields = [
            record.key,
            record.original_id,
            record.part,
            list(record.captions),
            questions,
        ]
        sha.update(json.dumps(fields).encode() + b"\n")
    return sha.hexdigest()


def score_intervals(
    statistics: Mapping[str, bootstrap.Statistic],
    scores: Mapping[str, float],
    task: str,
    settings: Mapping[str, int],
) -> dict[str, Any]:
    """Return the `intervals` and `bootstrap` entries of a record.

    Args:
      statistics: of the examples.
      scores: of the record; those without a statistic have no interval.
      task: a key of `DRAWN`.
      settings: "samples" and "seed" of the bootstrap; with 0 samples the result is {}.
    """
    if not settings["samples"]:
        return {}
    known = {name: statistics[name] for name in scores if name in statistics}
    intervals = bootstrap.intervals(known, **settings) if known else {}
    return {
        "intervals": {name: list(interval) for name, interval in intervals.items()},
        "bootstrap": {"level": bootstrap.LEVEL, **settings, "drawn": DRAWN[task]},
    }
