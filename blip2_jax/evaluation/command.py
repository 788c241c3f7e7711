"""Evaluate a model on a data set, and write down what came out.

What is asked for is one configuration (`default_evaluation`); the answer is a record:
a JSON file that says which model, data, settings and machine a score belongs to.
"""

from __future__ import annotations

import datetime
import json
import pathlib
import platform
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict, config_dict

import blip2_jax
from blip2_jax.api import Blip2
from blip2_jax.command_line import BESIDE, checkpoint
from blip2_jax.data.evaluation import EvaluationSet
from blip2_jax.data.sources.base import Record
from blip2_jax.evaluation.gallery import make_gallery
from blip2_jax.evaluation.page import caption_page, draw_shown
from blip2_jax.evaluation.stage1 import RetrievalSettings, evaluate_retrieval
from blip2_jax.evaluation.stage1_scores import text_length
from blip2_jax.evaluation.stage2 import evaluate_answers, evaluate_captions
from blip2_jax.evaluation.vqa import submission
from blip2_jax.loading import load
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.opening import is_run
from blip2_jax.presets import FeaturesConfig
from blip2_jax.training.config import read_config, to_plain

TASKS = ("retrieval", "captioning", "vqa")
Specs = list[dict[str, Any]]


class Outcome(NamedTuple):
    """Scores, what to say of them; the model's words and a page of them, if any."""

    scores: dict[str, float]
    notice: str = ""
    predictions: Any = None
    page: str = ""


def default_evaluation(task: str = "") -> ConfigDict:
    """Every key of an evaluation with its default.

    Args:
      task: one of `TASKS`.
    """
    unset = config_dict.placeholder
    return ConfigDict(
        {
            "model": "",  # a run's directory, or what else `blip2_jax.load` opens
            "which": "best",  # of a run: "best", "last" or a step
            # What the model's path does not say, as in launch/convert.py.
            "beside": dict.fromkeys(BESIDE, "") | {"image_size": unset(int)},
            # Sizes of axes, to use several devices; none set: the first device.
            "mesh": {"data": unset(int), "fsdp": unset(int), "tensor": unset(int)},
            "task": task,
            "data": (),  # source specs; (): what the run itself was evaluated on
            "max_examples": 0,  # 0: all
            "batch_size": 64,
            "precision": "",  # "": as in training
            # Retrieval: candidates that the matching head scores again; 0: none.
            "rerank": 128,
            "text_length": unset(int),  # not set: 35, or what a run was trained with
            # Of captions and answers; what is not set has the API's default.
            "decoding": {
                "num_beams": unset(int),
                "max_new_tokens": unset(int),
                "min_new_tokens": unset(int),
                "length_penalty": unset(float),
                "repetition_penalty": unset(float),
                "convention": unset(str),
            },
            "prompt": unset(str),  # before captions; not set: the run's own
            "tokenizer": "auto",  # of caption metrics: "java", "python", "auto"
            "page": 0,  # so many captioned pictures, drawn at random, as HTML
            "out": "",  # the record; "": evaluation_TASK.json, of a run inside it
        }
    ).lock()


def evaluate_run(config: ConfigDict) -> tuple[dict[str, Any], pathlib.Path]:
    """Evaluate as asked, write the record and, beside it, the predictions.

    Args:
      config: from `default_evaluation`, filled in.

    Returns:
      The record, and the file that it was written to.

    Raises:
      ValueError, FileNotFoundError: what is asked for cannot be; nothing is written.
    """
    started = time.monotonic()
    if config.task not in TASKS:
        raise ValueError(f"task {config.task!r}: there are {', '.join(TASKS)}")
    if not config.model:
        raise ValueError("no model was given: a run, a folder or a file of weights")
    if not pathlib.Path(config.model).exists():
        raise FileNotFoundError(f"no file or folder {config.model!r}")
    run = read_config(config.model) if is_run(config.model) else None
    given = config.data or (run.evaluation.sources if run else ())
    specs = [_plain(spec) for spec in given]
    if not specs:
        raise ValueError("no data was given, and no run names evaluation.sources")
    model = load(
        config.model, which=checkpoint(str(config.which)),
        precision=config.precision or None, batch_size=config.batch_size,
        mesh=_set(config.mesh) or None, **config.beside,
    )  # fmt: skip
    vision = model.model.config.vision
    size = 0 if isinstance(vision, FeaturesConfig) else vision.image_size
    data = EvaluationSet(specs, size, config.max_examples)
    config = config.copy_and_resolve_references()  # the caller's stays as it is
    with config.unlocked():
        if config.text_length is None:
            config.text_length = text_length(run.data.max_text_length if run else None)
    outcome = _EVALUATE[config.task](config, model, data, specs)
    record = {
        "task": config.task,
        "scores": outcome.scores,
        "notice": outcome.notice,
        "records": len(data.records),
        "broken": dict(data.faults.counts),
        "settings": to_plain(config) | {"data": specs},
        "version": blip2_jax.__version__,
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "machine": platform.machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
    }
    return record, _write(config, record, outcome)


def _retrieval(
    config: ConfigDict, model: Blip2, data: EvaluationSet, specs: Specs
) -> Outcome:
    if not isinstance(model.model, Blip2Stage1):
        raise ValueError(f"retrieval needs a stage-1 model, {config.model} is another")
    settings = RetrievalSettings(
        batch_size=config.batch_size,
        rerank=config.rerank,
        text_length=config.text_length,
    )
    gallery = make_gallery(data, model.qformer_tokenizer, settings.text_length)
    scores = evaluate_retrieval(model.model, model.params, data, gallery, settings)
    counts = {"images": len(gallery.records), "texts": len(gallery.texts)}
    return Outcome(scores, "{images} images, {texts} texts".format(**counts))


def _captioning(
    config: ConfigDict, model: Blip2, data: EvaluationSet, specs: Specs
) -> Outcome:
    settings = _set(config.decoding)
    if config.prompt is not None:
        settings["prompt"] = config.prompt
    found = evaluate_captions(
        model, data, batch_size=config.batch_size, settings=settings,
        tokenizer=config.tokenizer,
    )
    names = {record.image_id: record for record in data.records}
    predictions = [
        {
            "image_id": _original_id(names[image]),
            "key": names[image].key,
            "caption": caption,
        }
        for image, caption in found.captions.items()
    ]
    scores = found.scores
    page = ""
    if config.page:
        shown = draw_shown(specs, data.records, found.captions, config.page)
        lead = ", ".join(f"{name} {value:.1f}" for name, value in scores.scores.items())
        page = caption_page(f"Captions of {config.model}", lead, shown)
    return Outcome(scores.scores, scores.notice(), predictions, page)


def _vqa(
    config: ConfigDict, model: Blip2, data: EvaluationSet, specs: Specs
) -> Outcome:
    found = evaluate_answers(
        model, data, batch_size=config.batch_size, settings=_set(config.decoding)
    )
    return Outcome(found.scores, "", submission(found.answers))


_EVALUATE = {"retrieval": _retrieval, "captioning": _captioning, "vqa": _vqa}


def _plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    return spec.to_dict() if isinstance(spec, ConfigDict) else dict(spec)


def _original_id(record: Record) -> int | str:
    """The data set's own id of an image; its place where it has none."""
    return record.image_id if record.original_id is None else record.original_id


def _set(part: ConfigDict) -> dict[str, Any]:
    """The keys of a part of the configuration that were given values."""
    return {name: value for name, value in part.items() if value is not None}


def _write(
    config: ConfigDict, record: Mapping[str, Any], outcome: Outcome
) -> pathlib.Path:
    """The record, `NAME.predictions.json` and `NAME.html`."""
    folder = pathlib.Path(config.model if is_run(config.model) else ".")
    path = pathlib.Path(config.out or folder / f"evaluation_{config.task}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    if outcome.predictions is not None:
        text = json.dumps(outcome.predictions, indent=1, ensure_ascii=False)
        path.with_suffix(".predictions.json").write_text(text + "\n")
    if outcome.page:
        path.with_suffix(".html").write_text(outcome.page)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path
