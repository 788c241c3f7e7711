"""How good a stage-2 model is: captions and answers against people's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import PyTree

from blip2_jax.data.evaluation import EvaluationSet
from blip2_jax.evaluation.captioning import (
    PYTHON_METRICS,
    CaptionScores,
    caption_scores,
)
from blip2_jax.evaluation.vqa import AnsweredQuestion, exact_match, vqa_accuracy

Settings = Mapping[str, Any]

# Fewer answers than this for a question, and VQA accuracy says nothing.
VQA_ANSWERS = 10


class Writer(Protocol):
    """What writes captions and answers: `blip2_jax.api.Blip2`, or a test's stand-in.

    `images` are [B, S, S, 3] of bytes; else features [B, P, D] come as `features=`.
    """

    def caption(self, images: Any = None, **settings: Any) -> list[str]:
        """One caption an image."""
        ...

    def answer(
        self, images: Any = None, questions: Sequence[str] = (), **settings: Any
    ) -> list[str]:
        """One answer a question; images and questions are aligned."""
        ...


class Captioned(NamedTuple):
    """Captions of an evaluation set and their scores, both by image id."""

    scores: CaptionScores
    captions: dict[int, str]
    references: dict[int, tuple[str, ...]]


class Answered(NamedTuple):
    """Answers and their scores."""

    scores: dict[str, float]
    answers: list[tuple[int | str, str]]  # (question id, answer)


def evaluate_captions(
    writer: Writer,
    data: EvaluationSet,
    *,
    batch_size: int = 64,
    settings: Settings | None = None,
    **metrics: Any,
) -> Captioned:
    """Caption every image once and score the captions together.

    Args:
      writer: see there.
      data: its records' captions are the references. An image that cannot be read
        gets no caption and is counted by `data.faults`.
      batch_size: images at a time.
      settings: of decoding, for `writer.caption`.
      **metrics: for `caption_scores`: which metrics, and the tokenizer.

    Raises:
      ValueError: no image has a caption.
    """
    references: dict[int, tuple[str, ...]] = {}
    places: dict[int, int] = {}
    for place, record in enumerate(data.records):
        if record.captions:
            places.setdefault(record.image_id, place)
            before = references.get(record.image_id, ())
            references[record.image_id] = (*before, *record.captions)
    captions: dict[int, str] = {}
    image_ids = list(places)
    for found, images in _readable(data, list(places.values()), batch_size):
        texts = writer.caption(**images, **(settings or {}))
        captions |= zip([image_ids[index] for index in found], texts, strict=True)
    scores = caption_scores(captions, references, **metrics)
    return Captioned(scores, captions, references)


def evaluate_answers(
    writer: Writer,
    data: EvaluationSet,
    *,
    batch_size: int = 64,
    settings: Settings | None = None,
    max_questions: int = 0,
) -> Answered:
    """Ask every question, and score the replies to those with people's answers.

    Args:
      writer: see there.
      data: its records' questions. A question whose image cannot be read is not
        asked; the image is counted by `data.faults`.
      batch_size: questions at a time.
      settings: of decoding, for `writer.answer`.
      max_questions: ask only the first so many; 0: all.

    Returns:
      "exact_match" in percent and, where every question has ten answers,
      "vqa_accuracy", also by kind of answer; no scores without people's answers.

    Raises:
      ValueError: there are no questions.
    """
    asked = [
        (place, question)
        for place, record in enumerate(data.records)
        for question in record.questions
    ][: max_questions or None]
    if not asked:
        raise ValueError("question answering needs questions, and there are none")
    scored: list[AnsweredQuestion] = []
    answers: list[tuple[int | str, str]] = []
    for found, images in _readable(data, [place for place, _ in asked], batch_size):
        questions = [asked[index][1] for index in found]
        texts = [question.text for question in questions]
        replies = writer.answer(questions=texts, **images, **(settings or {}))
        for index, question, reply in zip(found, questions, replies, strict=True):
            name = question.question_id
            answers.append((index if name is None else name, reply))
            if question.answers:
                scored.append(AnsweredQuestion(reply, question.answers, question.kind))
    return Answered(answer_scores(scored), answers)


def answer_scores(questions: Sequence[AnsweredQuestion]) -> dict[str, float]:
    """Exact match, and VQA accuracy where it means something; {} of nothing."""
    if not questions:
        return {}
    scores = {"exact_match": exact_match(questions)}
    if all(len(question.references) >= VQA_ANSWERS for question in questions):
        scores |= {f"vqa_{name}": v for name, v in vqa_accuracy(questions).items()}
    return scores


class Stage2Evaluator:
    """Captions and answers of one evaluation set, for many parameters."""

    def __init__(
        self,
        make_writer: Callable[[PyTree], Writer],
        data: EvaluationSet,
        *,
        batch_size: int,
        caption_settings: Settings,
        answer_settings: Settings,
    ):
        """Look what there is to evaluate.

        Args:
          make_writer: from parameters to what writes.
          data: what to evaluate on.
          batch_size: images at a time.
          caption_settings, answer_settings: of decoding.

        Raises:
          ValueError: neither captions nor questions.
        """
        self._captions = any(record.captions for record in data.records)
        self._questions = any(
            question.answers for record in data.records for question in record.questions
        )
        if not (self._captions or self._questions):
            raise ValueError("the evaluation's records have no captions or questions")
        self._make_writer, self._data, self._batch_size = make_writer, data, batch_size
        self._caption_settings = caption_settings
        self._answer_settings = answer_settings

    def __call__(self, params: PyTree) -> dict[str, float]:
        """BLEU, ROUGE-L and CIDEr of captions; exact match of answers.

        Words are split in Python: the numbers do not depend on the machine's Java.
        """
        writer = self._make_writer(params)
        result: dict[str, float] = {}
        if self._captions:
            captioned = evaluate_captions(
                writer, self._data, batch_size=self._batch_size,
                settings=self._caption_settings,
                metrics=PYTHON_METRICS, tokenizer="python",
            )  # fmt: skip
            result |= captioned.scores.scores
        if self._questions:
            result |= evaluate_answers(
                writer, self._data, batch_size=self._batch_size,
                settings=self._answer_settings,
            ).scores  # fmt: skip
        return result


def _readable(
    data: EvaluationSet, places: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Batches of images that can be read: indices into `places`, and the images."""
    key = "features" if data.image_name == "features" else "images"
    for start in range(0, len(places), batch_size):
        indices = range(start, min(start + batch_size, len(places)))
        images = ((index, data.image(places[index])) for index in indices)
        found = {index: image for index, image in images if image is not None}
        if found:
            yield list(found), {key: np.stack(list(found.values()))}
