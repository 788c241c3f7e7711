"""How good a stage-2 model is: captions and answers against people's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jaxtyping import PyTree

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.sources.base import Question
from blip2_jax.evaluation.generate_texts import written
from blip2_jax.metrics.captions import PYTHON_METRICS, CaptionScores, caption_scores
from blip2_jax.metrics.vqa import AnsweredQuestion, Variant, exact_match, vqa_accuracy
from blip2_jax.parallel import hosts

Settings = Mapping[str, Any]

# Fewer answers than this for a question, and VQA accuracy says nothing.
VQA_ANSWERS = 10


class Captioner(Protocol):
    """A model that captions images, such as `blip2_jax.Blip2`.

    `images` is a uint8 array [B, R, R, 3], or None if `features` [B, P, D] are given.
    """

    def caption(self, images: Any = None, **settings: Any) -> list[str]:
        """Return one caption per image."""
        ...


class Writer(Captioner, Protocol):
    """A model that also answers questions, such as `blip2_jax.Blip2Generator`."""

    def answer(
        self, images: Any = None, questions: Sequence[str] = (), **settings: Any
    ) -> list[str]:
        """One answer a question; `image_of` says which image it is about."""
        ...


class Captioned(NamedTuple):
    """Captions of an evaluation set and their scores, both by image id."""

    scores: CaptionScores
    captions: dict[int, str]
    references: dict[int, tuple[str, ...]]


class Reply(NamedTuple):
    """An answer: the question's number among those asked, its record's place."""

    number: int
    place: int
    question: Question
    answer: str

    @property
    def question_id(self) -> int | str:
        """The data set's own, or the number."""
        own = self.question.question_id
        return self.number if own is None else own

    def answered(self) -> AnsweredQuestion:
        """As it is scored."""
        question = self.question
        return AnsweredQuestion(self.answer, question.answers, question.kind)


class Answered(NamedTuple):
    """Answers, in the order of the questions, and their scores."""

    scores: dict[str, float]
    replies: list[Reply]


def evaluate_captions(
    writer: Captioner,
    data: EvaluationSet,
    *,
    batch_size: int = 64,
    settings: Settings | None = None,
    share: hosts.Share | None = None,
    **metrics: Any,
) -> Captioned:
    """Caption every image once and score the captions together.

    Args:
      writer: see there.
      data: its records' captions are the references. An image that cannot be read
        gets no caption and is counted by `data.broken_stats`.
      batch_size: images at a time.
      settings: of decoding, for `writer.caption`.
      share: the images that this process captions; the others' captions are gathered.
      **metrics: for `caption_scores`: which metrics, and the tokenizer.

    Raises:
      ValueError: no image has a caption, or none can be read.
    """
    references: dict[int, tuple[str, ...]] = {}
    places: dict[int, int] = {}
    for place, record in enumerate(data.records):
        if record.captions:
            places.setdefault(record.image_id, place)
            before = references.get(record.image_id, ())
            references[record.image_id] = (*before, *record.captions)
    image_ids = list(places)
    texts = written(
        data,
        list(places.values()),
        batch_size,
        share or hosts.Share(),
        "captioning",
        lambda images, *_: writer.caption(**images, **(settings or {})),
    )
    captions = {image_ids[index]: text for index, text in texts}
    parts = {record.image_id: record.part for record in data.records}
    scores = caption_scores(captions, references, parts=parts, **metrics)
    return Captioned(scores, captions, references)


def evaluate_answers(
    writer: Writer,
    data: EvaluationSet,
    *,
    batch_size: int = 64,
    settings: Settings | None = None,
    max_questions: int = 0,
    variant: Variant = "official",
    share: hosts.Share | None = None,
) -> Answered:
    """Ask every question, and score the replies to those with people's answers.

    Args:
      writer: see there.
      data: its records' questions. A question whose image cannot be read is not
        asked; the image is counted by `data.broken_stats`.
      batch_size: questions at a time.
      settings: of decoding, for `writer.answer`.
      max_questions: ask only the first so many; 0: all.
      variant: of VQA accuracy.
      share: the questions that this process asks; the others' answers are gathered.

    Returns:
      The replies, and of those to questions with people's answers `answer_scores`.

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
    texts = written(
        data,
        [place for place, _ in asked],
        batch_size,
        share or hosts.Share(),
        "answering",
        lambda images, indices, image_of: writer.answer(
            questions=[asked[index][1].text for index in indices],
            image_of=image_of,
            **images,
            **(settings or {}),
        ),
    )
    replies = [Reply(index, *asked[index], text) for index, text in texts]
    scored = [each.answered() for each in replies if each.question.answers]
    return Answered(answer_scores(scored, variant), replies)


def answer_scores(
    questions: Sequence[AnsweredQuestion], variant: Variant = "official"
) -> dict[str, float]:
    """Exact match, and VQA accuracy where it means something; {} of nothing.

    The latter by kind of answer too; where it means nothing, exact match by kind.
    """
    if not questions:
        return {}
    scores = {"exact_match": exact_match(questions)}
    if has_ten_answers(questions):
        found = vqa_accuracy(questions, variant)
        return scores | {f"vqa_{name}": value for name, value in found.items()}
    for kind in dict.fromkeys(question.kind for question in questions):
        if kind:
            own = [question for question in questions if question.kind == kind]
            scores[f"exact_match_{kind}"] = exact_match(own)
    return scores


def has_ten_answers(questions: Sequence[AnsweredQuestion]) -> bool:
    """Whether VQA accuracy means something."""
    return all(len(question.references) >= VQA_ANSWERS for question in questions)


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
                writer,
                self._data,
                batch_size=self._batch_size,
                settings=self._caption_settings,
                metrics=PYTHON_METRICS,
                tokenizer="python",
            )
            result |= captioned.scores.scores
        if self._questions:
            result |= evaluate_answers(
                writer,
                self._data,
                batch_size=self._batch_size,
                settings=self._answer_settings,
            ).scores
        return result
