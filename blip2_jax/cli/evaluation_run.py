"""An evaluation from its configuration to the files that it writes.

The configuration is `default_evaluation`, filled in. The main result is a record: a
JSON file that says which model, data, settings and machine a score belongs to. With n
processes each holds a complete model on its own devices; process i evaluates examples
i, i+n, i+2n, ..., and the results of all are gathered and scored once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.hub import parse_name
from blip2_jax.evaluation.captioning import CaptioningTask
from blip2_jax.evaluation.coverage import join_notices
from blip2_jax.evaluation.eval_config import TASKS, keys_that_are_set
from blip2_jax.evaluation.examples import example_statistics, write_examples
from blip2_jax.evaluation.record import (
    params_digest,
    records_digest,
    score_intervals,
)
from blip2_jax.evaluation.rerank_cache import RerankCache
from blip2_jax.evaluation.retrieval import (
    RetrievalTask,
    evaluation_text_length,
    make_gallery,
)
from blip2_jax.evaluation.tasks import (
    EvaluationBatches,
    EvaluationResult,
    EvaluationTask,
)
from blip2_jax.evaluation.vqa import VqaTask, check_result_format
from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.load import ExtraWeights, load, open_model
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.inference.shipped_models import SHIPPED_MODELS
from blip2_jax.metrics.vqa import VARIANTS
from blip2_jax.models.sizes import FeaturesConfig, ViTConfig
from blip2_jax.parallel import hosts
from blip2_jax.parallel.paths import as_path, is_remote
from blip2_jax.parallel.user_cache import user_cache_directory
from blip2_jax.perf.compile_cache import compiling_message
from blip2_jax.perf.environment import environment
from blip2_jax.reports.caption_page import caption_page, draw_captioned
from blip2_jax.training.cached_features import check_encoder, encoder_manifest
from blip2_jax.training.checkpoints import is_run, parse_checkpoint
from blip2_jax.training.train_config import read_config, to_plain


@dataclasses.dataclass(frozen=True)
class EvaluationRun:
    """An evaluation that is ready to start.

    Attributes:
      config: with all defaults filled in.
      model: the model.
      data: the evaluation set.
      specs: its source specs.
      digests: of "model" and "data".
      out: path of the record; other files stand beside it.
    """

    config: ConfigDict
    model: Blip2
    data: EvaluationSet
    specs: list[dict[str, Any]]
    digests: Mapping[str, str]
    out: pathlib.Path


def evaluate_run(config: ConfigDict) -> tuple[dict[str, Any], pathlib.Path]:
    """Evaluate, and write the record and the files beside it.

    Args:
      config: from `default_evaluation`, filled in.

    Returns:
      The record, and the path that the first process wrote it to.

    Raises:
      ValueError: the configuration cannot be evaluated; nothing is written.
      FileNotFoundError: the model or the data is missing.
    """
    started = time.monotonic()
    run = set_up(config)
    task = make_task(run)
    if hosts.is_first():
        print(compiling_message("first batch"), file=sys.stderr, flush=True)
    batches = EvaluationBatches(run.data, run.config.batch_size, hosts.own_share())
    result = task.run(run.model, batches)
    _gather_broken_images(batches)
    record = _record(run, result, time.monotonic() - started)
    if hosts.is_first():
        _write(run, record, result)
    hosts.barrier("the record is written")
    if isinstance(task, RetrievalTask) and task.cache is not None:
        task.cache.delete()
    return record, run.out


def set_up(config: ConfigDict) -> EvaluationRun:
    """Check a configuration, and open its model and data.

    Raises:
      ValueError: the configuration cannot be evaluated.
      FileNotFoundError: the model or the data is missing.
    """
    _check(config)
    training = read_config(config.model) if is_run(config.model) else None
    sources = config.data or (training.evaluation.sources if training else ())
    specs = [_plain(spec) for spec in sources]
    if not specs:
        raise ValueError("no data was given, and no run names evaluation.sources")
    model = load(
        config.model,
        which=parse_checkpoint(str(config.which)),
        precision=config.precision or None,
        quantize=config.quantize,
        batch_size=config.batch_size,
        mesh=keys_that_are_set(config.mesh) or None,
        devices=jax.local_devices(),
        **config.beside,
    )
    if config.task == "retrieval" and not isinstance(model, Blip2Retriever):
        raise ValueError(f"retrieval needs a stage-1 model, {config.model} is another")
    if config.task == "vqa" and not isinstance(model, Blip2Generator):
        raise ValueError(f"vqa needs a stage-2 model, {config.model} is another")
    vision = model.model.config.vision
    size = 0 if isinstance(vision, FeaturesConfig) else vision.image_size
    data = EvaluationSet(specs, size, config.max_examples, config.max_broken_share)
    _check_features(config, vision, data)
    config = config.copy_and_resolve_references()  # the caller's does not change
    with config.unlocked():
        if config.text_length is None:
            trained_length = training.data.max_text_length if training else None
            config.text_length = evaluation_text_length(trained_length)
    digests = {
        "model": params_digest(model.params),
        "data": records_digest(data.records),
    }
    directory = as_path(config.model if training else ".")
    out = as_path(config.out or directory / f"evaluation_{config.task}.json")
    return EvaluationRun(config, model, data, specs, digests, out)


def _check(config: ConfigDict) -> None:
    """Raise errors that need no file to be read."""
    if config.task not in TASKS:
        raise ValueError(f"task {config.task!r}: there are {', '.join(TASKS)}")
    check_result_format(config.result_format)
    if config.variant not in VARIANTS:
        raise ValueError(f"variant {config.variant!r}: there are {', '.join(VARIANTS)}")
    if config.candidates:
        read_candidates(config)
    if not config.model:
        raise ValueError("no model was given: a run, a folder or a file of weights")
    is_named = config.model in SHIPPED_MODELS or parse_name(config.model)
    if not is_named and not as_path(config.model).exists():
        raise FileNotFoundError(f"no file or folder {config.model!r}")


def _check_features(
    config: ConfigDict, vision: ViTConfig | FeaturesConfig, data: EvaluationSet
) -> None:
    """Check that cached features are of the model's own encoder.

    Raises:
      ConfigError: they are of another.
    """
    if not data.feature_origins:
        return
    extra = ExtraWeights(**config.beside)
    source = open_model(config.model, extra, parse_checkpoint(str(config.which)))
    manifest = encoder_manifest(source.arrays)
    check_encoder(data.feature_origins, vision, manifest, config.model)


def make_task(run: EvaluationRun) -> EvaluationTask[Any]:
    """Make the task that a configuration names, with its settings."""
    config = run.config
    if config.task == "retrieval":
        tokenizer = run.model.qformer_tokenizer
        gallery = make_gallery(run.data, tokenizer, config.text_length)
        return RetrievalTask(gallery, config.rerank, _rerank_cache(run))
    settings = keys_that_are_set(config.decoding)
    if config.task == "captioning":
        if config.prompt is not None:
            settings["prompt"] = config.prompt
        return CaptioningTask(settings, tokenizer=config.tokenizer)
    if config.question_prompt is not None:
        settings["question_prompt"] = config.question_prompt
    return VqaTask(
        settings,
        config.variant,
        config.lemmatise,
        config.result_format,
        read_candidates(config) if config.candidates else (),
    )


def read_candidates(config: ConfigDict) -> list[str]:
    """Read the candidate answers, one a line; blank lines are left out.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it holds no candidate, the task is not "vqa", or a decoding setting
        is set that does not apply to rankings.
    """
    if config.task != "vqa":
        raise ValueError(
            f"candidates are answers: the task is {config.task!r}, not vqa"
        )
    settings = keys_that_are_set(config.decoding)
    if unused := settings.keys() - {"length_penalty"}:
        raise ValueError(
            f"decoding.{min(unused)} is for generated answers; candidates are ranked"
        )
    text = as_path(config.candidates).read_text(encoding="utf-8-sig")
    candidates = [line.strip() for line in text.split("\n") if line.strip()]
    if not candidates:
        raise ValueError(f"{config.candidates} holds no candidate answer")
    return candidates


def _rerank_cache(run: EvaluationRun) -> RerankCache | None:
    """Open the cache of a re-ranking beside the record; in the user's, of a store."""
    if not run.config.rerank:
        return None
    key = {**run.digests, "text_length": run.config.text_length}
    directory = run.out.with_suffix(".rerank")
    if is_remote(directory):  # rows are appended
        digest = hashlib.sha256(str(directory).encode()).hexdigest()[:24]
        directory = user_cache_directory() / "rerank" / digest
    return RerankCache(directory, key)


def _gather_broken_images(batches: EvaluationBatches) -> None:
    """Count the images that any process could not read, in all processes."""
    data = batches.data
    own = [[index, *fault] for index, fault in data.broken_images.items()]
    for part in hosts.all_gather(own, batches.share):
        for index, cause, key in part:
            data.mark_broken(index, cause, key)


def _record(
    run: EvaluationRun, result: EvaluationResult, seconds: float
) -> dict[str, Any]:
    """Assemble the record; `docs/evaluation.md` describes it."""
    config = run.config
    return {
        "task": config.task,
        "title": config.title or config.model,
        "scores": result.metrics,
        **score_intervals(
            example_statistics(result.examples),
            result.metrics,
            config.task,
            config.bootstrap.to_dict(),
        ),
        "notice": join_notices(result.notice, run.data.notice()),
        "coverage": None if result.coverage is None else result.coverage.record(),
        "records": len(run.data.records),
        "examples": len(result.examples),
        "broken": dict(run.data.broken_stats.counts),
        "left_out": dict(run.data.left_out),
        "digests": dict(run.digests),
        "settings": to_plain(config) | {"data": run.specs},
        **environment(),
        "seconds": round(seconds, 1),
    }


def _plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    return spec.to_dict() if isinstance(spec, ConfigDict) else dict(spec)


def _write(
    run: EvaluationRun, record: Mapping[str, Any], result: EvaluationResult
) -> None:
    """Write the examples, predictions and HTML page, and the record last."""
    run.out.parent.mkdir(parents=True, exist_ok=True)
    write_examples(run.out.with_suffix(".examples.jsonl"), result.examples)
    if result.predictions is not None:
        text = json.dumps(result.predictions, indent=1, ensure_ascii=False)
        run.out.with_suffix(".predictions.json").write_text(text + "\n")
    if run.config.task == "captioning" and run.config.page:
        captioned = draw_captioned(run.specs, result.examples, run.config.page)
        lead = ", ".join(
            f"{name} {value:.1f}" for name, value in result.metrics.items()
        )
        page = caption_page(f"Captions of {run.config.model}", lead, captioned)
        run.out.with_suffix(".html").write_text(page)
    run.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
