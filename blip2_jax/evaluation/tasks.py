"""The tasks of an evaluation: what is asked of a model, and what comes out."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.evaluation import results
from blip2_jax.evaluation.examples import Example
from blip2_jax.evaluation.gallery import Gallery, make_gallery
from blip2_jax.evaluation.rerank_cache import FinishedRows
from blip2_jax.evaluation.retrieval import best, first_hits
from blip2_jax.evaluation.stage1 import RetrievalSettings, Searched, evaluate_retrieval
from blip2_jax.evaluation.stage2 import (
    Captioned,
    Reply,
    Writer,
    evaluate_answers,
    evaluate_captions,
    has_ten_answers,
)
from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.metrics import lemmas
from blip2_jax.metrics.vqa import Variant, agreement, matches_exactly
from blip2_jax.parallel import hosts
from blip2_jax.reports.page import caption_page, draw_shown

SHOWN = 5  # answers of a search that its example keeps


@dataclasses.dataclass(frozen=True)
class Job:
    """An evaluation that can begin.

    Attributes:
      config: all of it, its defaults filled in.
      model, data, specs: the model; the evaluated data, and its source specs.
      digests: of "model" and "data".
      out: the record to be written; other files stand beside it.
      share: what this process does.
    """

    config: ConfigDict
    model: Blip2
    data: EvaluationSet
    specs: list[dict[str, Any]]
    digests: Mapping[str, str]
    out: pathlib.Path
    share: hosts.Share


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Scores, what to say of them, and what they come from.

    Attributes:
      predictions: the file for a server, if the task has one.
      page: some captioned pictures as HTML, if asked for.
      scratch: to be deleted when all is written.
    """

    scores: dict[str, float]
    examples: list[Example]
    notice: str = ""
    predictions: Any = None
    page: str = ""
    scratch: FinishedRows | None = None


def retrieval(job: Job) -> Outcome:
    """Recalls both ways; a re-ranking that was killed goes on.

    Raises:
      ValueError: the model is none of stage 1, or the data has no captions.
    """
    config, model = job.config, job.model
    if not isinstance(model, Blip2Retriever):
        raise ValueError(f"retrieval needs a stage-1 model, {config.model} is another")
    settings = RetrievalSettings(
        batch_size=config.batch_size,
        rerank=config.rerank,
        text_length=config.text_length,
    )
    gallery = make_gallery(job.data, model.qformer_tokenizer, settings.text_length)
    finished = None
    if settings.rerank:
        what = {**job.digests, "text_length": config.text_length}
        finished = FinishedRows(job.out.with_suffix(".rerank"), what)
    found = evaluate_retrieval(
        model.model,
        model.params,
        job.data,
        gallery,
        settings,
        share=job.share,
        finished=finished,
    )
    notice = f"{len(gallery.records)} images, {len(gallery.texts)} texts"
    examples = _search_examples(job.data, gallery, found)
    return Outcome(found.scores, examples, notice, scratch=finished)


def _search_examples(
    data: EvaluationSet, gallery: Gallery, found: Searched
) -> list[Example]:
    """Every image, then every text, with the ranks of what belongs to it."""
    owners = gallery.image_of_text
    ranks = {stage: first_hits(each, owners) for stage, each in found.ranked.items()}
    last = found.ranked[list(found.ranked)[-1]]
    records = [data.records[place] for place in gallery.records]
    examples: list[Example] = []
    for image, texts in enumerate(best(last.image_to_text, SHOWN)):
        examples.append(
            {
                "unit": "image",
                "id": results.original_id(records[image]),
                "key": records[image].key,
                "ranks": {s: int(each.images[image]) for s, each in ranks.items()},
                "found": [
                    {"text": gallery.texts[text], "right": bool(owners[text] == image)}
                    for text in texts
                ],
            }
        )
    for text, images in enumerate(best(last.text_to_image, SHOWN)):
        examples.append(
            {
                "unit": "text",
                "id": text,
                "owner": int(owners[text]),
                "said": gallery.texts[text],
                "ranks": {s: int(each.texts[text]) for s, each in ranks.items()},
                "found": [
                    {"key": records[image].key, "right": bool(owners[text] == image)}
                    for image in images
                ],
            }
        )
    return examples


def captioning(job: Job) -> Outcome:
    """Captions, scored together."""
    config = job.config
    settings = given(config.decoding)
    if config.prompt is not None:
        settings["prompt"] = config.prompt
    found = evaluate_captions(
        job.model,
        job.data,
        batch_size=config.batch_size,
        settings=settings,
        share=job.share,
        tokenizer=config.tokenizer,
    )
    records = {record.image_id: record for record in job.data.records}
    said = [(records[image], text) for image, text in found.captions.items()]
    page = ""
    if config.page and hosts.is_first():
        shown = draw_shown(job.specs, job.data.records, found.captions, config.page)
        scores = found.scores.scores
        lead = ", ".join(f"{name} {value:.1f}" for name, value in scores.items())
        page = caption_page(f"Captions of {config.model}", lead, shown)
    return Outcome(
        found.scores.scores,
        _caption_examples(job.data, found),
        found.scores.notice(),
        results.caption_results(said),
        page,
    )


def _caption_examples(data: EvaluationSet, found: Captioned) -> list[Example]:
    records = {record.image_id: record for record in data.records}
    return [
        {
            "unit": "image",
            "id": results.original_id(records[image]),
            "key": records[image].key,
            "said": caption,
            "references": list(found.references[image]),
            "scores": found.scores.each[image],
            "bleu": found.scores.bleu[image],
            "part": records[image].part,
        }
        for image, caption in found.captions.items()
    ]


def vqa(job: Job) -> Outcome:
    """Answers to all questions."""
    config = job.config
    notice = ""
    if not isinstance(job.model, Blip2Generator):
        raise ValueError(f"vqa needs a stage-2 model, {config.model} is another")
    writer: Writer = job.model
    if config.lemmatise and not (notice := lemmas.lacking()):
        writer = lemmas.Lemmatised(job.model)
    settings = given(config.decoding)
    if config.question_prompt is not None:
        settings["question_prompt"] = config.question_prompt
    found = evaluate_answers(
        writer,
        job.data,
        batch_size=config.batch_size,
        settings=settings,
        variant=config.variant,
        share=job.share,
    )
    answers = [(reply.question_id, reply.answer) for reply in found.replies]
    predictions = results.answer_results(answers, config.result_format)
    examples = _answer_examples(job.data, found.replies, config.variant)
    return Outcome(found.scores, examples, notice, predictions)


def _answer_examples(
    data: EvaluationSet, replies: list[Reply], variant: Variant
) -> list[Example]:
    scored = [reply.answered() for reply in replies if reply.question.answers]
    with_accuracy = has_ten_answers(scored)
    examples: list[Example] = []
    for reply in replies:
        scores: dict[str, float] = {}
        if reply.question.answers:
            answered = reply.answered()
            scores["exact_match"] = 100.0 * matches_exactly(answered)
            if with_accuracy:
                scores["vqa_accuracy"] = 100 * agreement(answered, variant)
            if answered.kind:
                name, value = list(scores.items())[-1]
                scores[f"{name}_{answered.kind}"] = value
        examples.append(
            {
                "unit": "question",
                "id": reply.question_id,
                "key": data.records[reply.place].key,
                "question": reply.question.text,
                "said": reply.answer,
                "references": list(reply.question.answers),
                "scores": scores,
            }
        )
    return examples


TASKS: dict[str, Callable[[Job], Outcome]] = {
    "retrieval": retrieval,
    "captioning": captioning,
    "vqa": vqa,
}


def given(part: ConfigDict) -> dict[str, Any]:
    """The keys of a part of the configuration that were given values."""
    return {name: value for name, value in part.items() if value is not None}
