"""Evaluate a model on a data set, and write down what came out.

What is asked for is one configuration (`default_evaluation`); the answer is a record:
a JSON file that says which model, data, settings and machine a score belongs to. With
several processes each has a model of its own, on its own devices, and works on every
so-manieth example; what they find is gathered and scored once.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.evaluation.examples import statistics_of, write_examples
from blip2_jax.evaluation.record import (
    digest_of_parameters,
    digest_of_records,
    intervals_of,
    surroundings,
)
from blip2_jax.evaluation.results import RESULT_FORMATS
from blip2_jax.evaluation.stage1_scores import text_length
from blip2_jax.evaluation.tasks import TASKS, Job, Outcome, given
from blip2_jax.inference.load import load
from blip2_jax.metrics.vqa import VARIANTS
from blip2_jax.models.presets import FeaturesConfig
from blip2_jax.parallel import hosts
from blip2_jax.training.checkpoints import is_run, parse_checkpoint
from blip2_jax.training.train_config import read_config, to_plain


def evaluate_run(config: ConfigDict) -> tuple[dict[str, Any], pathlib.Path]:
    """Evaluate as asked, write the record and the files beside it.

    Args:
      config: from `default_evaluation`, filled in.

    Returns:
      The record, and the file that it was written to (by the first process).

    Raises:
      ValueError, FileNotFoundError: what is asked for cannot be; nothing is written.
    """
    started = time.monotonic()
    job = prepare(config)
    outcome = TASKS[job.config.task](job)
    _gather_broken(job)
    scores = outcome.scores
    statistics = statistics_of(outcome.examples)
    record = {
        "task": job.config.task,
        "title": job.config.title or job.config.model,
        "scores": scores,
        **intervals_of(
            statistics, scores, job.config.task, job.config.bootstrap.to_dict()
        ),
        "notice": outcome.notice,
        "records": len(job.data.records),
        "examples": len(outcome.examples),
        "broken": dict(job.data.broken_stats.counts),
        "digests": dict(job.digests),
        "settings": to_plain(job.config) | {"data": job.specs},
        **surroundings(time.monotonic() - started),
    }
    if hosts.is_first():
        _write(job.out, record, outcome)
    hosts.barrier("the record is written")
    if outcome.scratch is not None:
        outcome.scratch.delete()
    return record, job.out


def prepare(config: ConfigDict) -> Job:
    """Check what is asked for, open model and data.

    Raises:
      ValueError, FileNotFoundError: what is asked for cannot be.
    """
    _check(config)
    run = read_config(config.model) if is_run(config.model) else None
    named = config.data or (run.evaluation.sources if run else ())
    specs = [_plain(spec) for spec in named]
    if not specs:
        raise ValueError("no data was given, and no run names evaluation.sources")
    model = load(
        config.model,
        which=parse_checkpoint(str(config.which)),
        precision=config.precision or None,
        batch_size=config.batch_size,
        mesh=given(config.mesh) or None,
        devices=jax.local_devices(),
        **config.beside,
    )
    vision = model.model.config.vision
    size = 0 if isinstance(vision, FeaturesConfig) else vision.image_size
    data = EvaluationSet(specs, size, config.max_examples)
    config = config.copy_and_resolve_references()  # the caller's stays as it is
    with config.unlocked():
        if config.text_length is None:
            config.text_length = text_length(run.data.max_text_length if run else None)
    digests = {
        "model": digest_of_parameters(model.params),
        "data": digest_of_records(data.records),
    }
    folder = pathlib.Path(config.model if run else ".")
    out = pathlib.Path(config.out or folder / f"evaluation_{config.task}.json")
    return Job(config, model, data, specs, digests, out, hosts.own_share())


def _check(config: ConfigDict) -> None:
    """What can be refused before anything is read."""
    if config.task not in TASKS:
        raise ValueError(f"task {config.task!r}: there are {', '.join(TASKS)}")
    if config.result_format not in RESULT_FORMATS:
        known = ", ".join(RESULT_FORMATS)
        raise ValueError(f"result_format {config.result_format!r}: there are {known}")
    if config.variant not in VARIANTS:
        raise ValueError(f"variant {config.variant!r}: there are {', '.join(VARIANTS)}")
    if not config.model:
        raise ValueError("no model was given: a run, a folder or a file of weights")
    if not pathlib.Path(config.model).exists():
        raise FileNotFoundError(f"no file or folder {config.model!r}")


def _gather_broken(job: Job) -> None:
    """What any process could not read, counted in all of them."""
    mine = [[place, *fault] for place, fault in job.data.broken_images.items()]
    for part in hosts.all_gather(mine, job.share):
        for place, cause, key in part:
            job.data.mark_broken(place, cause, key)


def _plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    return spec.to_dict() if isinstance(spec, ConfigDict) else dict(spec)


def _write(path: pathlib.Path, record: Mapping[str, Any], outcome: Outcome) -> None:
    """The record, `NAME.examples.jsonl`, `NAME.predictions.json` and `NAME.html`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_examples(path.with_suffix(".examples.jsonl"), outcome.examples)
    if outcome.predictions is not None:
        text = json.dumps(outcome.predictions, indent=1, ensure_ascii=False)
        path.with_suffix(".predictions.json").write_text(text + "\n")
    if outcome.page:
        path.with_suffix(".html").write_text(outcome.page)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
