"""Evaluators for training runs: functions from parameters to metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import PyTree
from ml_collections import ConfigDict

from blip2_jax.data.data_config import data_config
from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.sources.content_digest import evenly_spaced
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.evaluation.captioning import CaptioningTask
from blip2_jax.evaluation.examples import Example
from blip2_jax.evaluation.held_out_loss import HeldOutLossTask
from blip2_jax.evaluation.retrieval import (
    RetrievalTask,
    evaluation_text_length,
    make_gallery,
)
from blip2_jax.evaluation.tasks import EvaluationBatches, EvaluationTask
from blip2_jax.evaluation.vqa import VqaTask
from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.metrics.captions import PYTHON_METRICS
from blip2_jax.training.setup import Evaluation, Evaluator
from blip2_jax.training.tasks import Task

logger = logging.getLogger(__name__)


SAMPLES = 8  # examples of each task that a run keeps of each evaluation
_NOT_SHOWN = ("bleu", "part", "owner")


def make_evaluator(config: ConfigDict, task: Task) -> Evaluator | None:
    """Make a function from all parameters to metrics on `config.evaluation.sources`.

    Records are read and tokenised here, once.

    Args:
      config: of the run.
      task: of the run.

    Returns:
      None where the configuration asks for no evaluation.

    Raises:
      ValueError: the task has no evaluation, or the sources do not fit it.
      FileNotFoundError: a source is missing.
    """
    if not config.evaluation.every:
        return None
    if task.name not in EVALUATORS:
        raise ValueError(
            f"task {task.name} has no evaluation: config.evaluation.every must be 0"
        )
    return EVALUATORS[task.name](config, task)


def combine_tasks(
    make_model: Callable[[PyTree], Any],
    tasks: list[EvaluationTask[Any]],
    batches: EvaluationBatches,
) -> Evaluator:
    """Return a function from parameters to the metrics and samples of all tasks."""

    def evaluate(params: PyTree) -> Evaluation:
        model = make_model(params)
        metrics: dict[str, float] = {}
        samples: list[Example] = []
        for task in tasks:
            result = task.run(model, batches)
            if result.coverage is not None and (notice := result.coverage.notice()):
                logger.warning("%s: %s", type(task).__name__, notice)
            metrics |= result.metrics
            samples += select_samples(result.examples)
        return Evaluation(metrics, samples)

    return evaluate


def select_samples(examples: Sequence[Example]) -> list[Example]:
    """Select the examples to keep, the same ones at every evaluation.

    Of a retrieval, these are searches from images.
    """
    units = {example["unit"] for example in examples}
    unit = "image" if "image" in units else next(iter(units), "")
    shown = [example for example in examples if example["unit"] == unit]
    return [
        {name: value for name, value in shown[index].items() if name not in _NOT_SHOWN}
        for index in evenly_spaced(len(shown), SAMPLES)
    ]


def _stage1(config: ConfigDict, task: Task) -> Evaluator:
    """Evaluate retrieval and the losses."""
    options, batches = data_config(config.data), _batches(config)
    tokenizer = load_tokenizer(options.tokenizer_spec("qformer"), language_model=False)
    length = min(
        evaluation_text_length(options.max_text_length),
        task.model.config.qformer.max_positions,
    )
    gallery = make_gallery(batches.data, tokenizer, length)
    return combine_tasks(
        lambda params: Blip2Retriever(task.model, params, qformer_tokenizer=tokenizer),
        [
            RetrievalTask(gallery, config.evaluation.rerank),
            HeldOutLossTask(task.loss, options),
        ],
        batches,
    )


def _stage2(config: ConfigDict, task: Task) -> Evaluator:
    """Evaluate captioning, VQA, or both, depending on the records."""
    options, batches = data_config(config.data), _batches(config)
    language = load_tokenizer(
        options.tokenizer_spec("language_model"),
        language_model=True,
        prompt_template=options.prompt_template,
    )
    qformer = None
    if options.tokenizer.qformer:
        qformer = load_tokenizer(
            options.tokenizer_spec("qformer"), language_model=False
        )
    decoding = {
        "num_beams": config.evaluation.num_beams,
        "max_new_tokens": config.evaluation.max_new_tokens,
    }
    return combine_tasks(
        lambda params: Blip2Generator(
            task.model,
            params,
            qformer_tokenizer=qformer,
            language_tokenizer=language,
            prompt=options.prompt,
            question_prompt=options.question_prompt,
            prompt_in_qformer=options.qformer_reads == "prompt",
            batch_size=batches.batch_size,
        ),
        text_tasks(batches.data, decoding),
        batches,
    )


def text_tasks(
    data: EvaluationSet, decoding: dict[str, Any]
) -> list[EvaluationTask[Any]]:
    """Return captioning if the records have captions, VQA if they have answers.

    Words are split in Python, so that metrics do not depend on an installed Java.

    Raises:
      ValueError: the records have neither.
    """
    tasks: list[EvaluationTask[Any]] = []
    if any(record.captions for record in data.records):
        tasks.append(CaptioningTask(decoding, PYTHON_METRICS, "python"))
    if any(q.answers for record in data.records for q in record.questions):
        tasks.append(VqaTask(decoding))
    if not tasks:
        raise ValueError("the evaluation's records have no captions and no answers")
    return tasks


def _batches(config: ConfigDict) -> EvaluationBatches:
    options = data_config(config.data)
    sources = [dict(spec.items()) for spec in config.evaluation.sources]
    data = EvaluationSet(
        sources,
        options.image.size,
        config.evaluation.max_examples,
        options.max_broken_share,
    )
    return EvaluationBatches(data, config.evaluation.batch_size)


EVALUATORS: dict[str, Callable[[ConfigDict, Task], Evaluator]] = {
    "stage1": _stage1,
    "stage2": _stage2,
}
