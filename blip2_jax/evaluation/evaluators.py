"""The evaluation that a training configuration asks for, by task."""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from blip2_jax.data.data_config import data_config
from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.evaluation.stage1 import RetrievalSettings, Stage1Evaluator
from blip2_jax.evaluation.stage1_scores import text_length
from blip2_jax.evaluation.stage2 import Stage2Evaluator
from blip2_jax.training.setup import Evaluator
from blip2_jax.training.tasks import Task


def make_evaluator(config: ConfigDict, task: Task) -> Evaluator | None:
    """A function of all parameters to the scores of `config.evaluation.sources`.

    Texts are read and tokenised here, once.

    Args:
      config: of the run.
      task: of the run.

    Returns:
      None where the configuration asks for no evaluation.

    Raises:
      ValueError, FileNotFoundError: the sources cannot be evaluated on, or the task
        has no evaluation.
    """
    if not config.evaluation.every:
        return None
    if task.name not in EVALUATORS:
        raise ValueError(
            f"task {task.name} has no evaluation: config.evaluation.every must be 0"
        )
    return EVALUATORS[task.name](config, task)


def _evaluation_set(config: ConfigDict) -> EvaluationSet:
    options = data_config(config.data)
    sources = [dict(spec.items()) for spec in config.evaluation.sources]
    return EvaluationSet(sources, options.image.size, config.evaluation.max_examples)


def _stage1(config: ConfigDict, task: Task) -> Evaluator:
    options, data = data_config(config.data), _evaluation_set(config)
    settings = RetrievalSettings(
        batch_size=config.evaluation.batch_size,
        rerank=config.evaluation.rerank,
        text_length=text_length(options.max_text_length),
    )
    return Stage1Evaluator(task.model, task.loss, options, data, settings)


def _stage2(config: ConfigDict, task: Task) -> Evaluator:
    from blip2_jax.inference.generator import Blip2Generator

    options, chosen = data_config(config.data), config.evaluation
    language = load_tokenizer(options.tokenizer.language_model, language_model=True)
    qformer = None
    if options.tokenizer.qformer:
        qformer = load_tokenizer(options.tokenizer.qformer, language_model=False)
    decoding = {
        "num_beams": chosen.num_beams,
        "max_new_tokens": chosen.max_new_tokens,
    }
    return Stage2Evaluator(
        lambda params: Blip2Generator(
            task.model,
            params,
            qformer_tokenizer=qformer,
            language_tokenizer=language,
            prompt=options.prompt,
            question_prompt=options.question_prompt,
            batch_size=chosen.batch_size,
        ),
        _evaluation_set(config),
        batch_size=chosen.batch_size,
        caption_settings=decoding,
        answer_settings=decoding,
    )


EVALUATORS: dict[str, Callable[[ConfigDict, Task], Evaluator]] = {
    "stage1": _stage1,
    "stage2": _stage2,
}
