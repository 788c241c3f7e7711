"""Visual question answering: exact match and VQA accuracy of a model's answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.sources.base import Question
from blip2_jax.evaluation.coverage import Coverage, join_notices
from blip2_jax.evaluation.examples import Example
from blip2_jax.evaluation.generate_texts import GenerationBatch, generate_texts
from blip2_jax.evaluation.tasks import EvaluationBatches, EvaluationResult
from blip2_jax.metrics import lemmas
from blip2_jax.metrics.vqa import (
    AnsweredQuestion,
    Variant,
    agreement,
    answer_scores,
    has_ten_answers,
    matches_exactly,
)

RESULT_FORMATS = ("vqa", "gqa")


class AnsweringModel(Protocol):
    """A model that answers questions, such as those that `blip2_jax.load` returns."""

    def rank(
        self, images: Any = None, candidates: Sequence[Any] = (), **settings: Any
    ) -> list[list[Any]]:
        """Rank candidate answers (`questions=`) by their log-probability, best first.

        The other arguments are those of `answer`. A candidate is the attribute `text`.
        """
        ...

    def answer(
        self, images: Any = None, questions: Sequence[str] = (), **settings: Any
    ) -> list[str]:
        """Answer questions about images uint8 [B, height, width, 3], or features=.

        `image_of` gives the row of the image for each question.
        """
        ...


class Reply(NamedTuple):
    """A model's answer.

    Attributes:
      number: position of the question among all questions.
      record: index of its record in the evaluation set.
      question: the question with people's answers.
      answer: the model's answer.
    """

    number: int
    record: int
    question: Question
    answer: str

    @property
    def question_id(self) -> int | str:
        """The data set's own id, or the number where it has none."""
        own = self.question.question_id
        return self.number if own is None else own

    def answered(self) -> AnsweredQuestion:
        """Return the answer with people's answers, as the metrics take it."""
        question = self.question
        return AnsweredQuestion(self.answer, question.answers, question.kind)


@dataclasses.dataclass(frozen=True)
class VqaTask:
    """Ask every question, and score the answers to those that people have answered.

    Attributes:
      settings: keyword arguments of `model.answer`: decoding settings,
        `question_prompt`. With candidates those of `model.rank`: `question_prompt` and
        `length_penalty`.
      candidates: the answer is the most likely of these, in place of a generated one
        (InstructBLIP's vocabulary ranking); () generates.
      variant: of VQA accuracy.
      lemmatise: replace nouns and verbs of answers by their lemmas, as the original
        does on OK-VQA; without spaCy the answers stay as they are and the result's
        notice says so.
      result_format: of the predictions, "vqa" (VQAv2, OK-VQA) or "gqa".
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variant: Variant = "official"
    lemmatise: bool = False
    result_format: str = "vqa"
    candidates: Sequence[str] = ()

    def run(
        self, model: AnsweringModel, batches: EvaluationBatches
    ) -> EvaluationResult:
        """Ask and score.

        A question whose image cannot be read is not asked, and one without answers is
        not scored; both are counted.

        Returns:
          `answer_scores`, an example per question, and the list of answers that a
          benchmark server takes.

        Raises:
          ValueError: there are no questions.
          TooManyBrokenSamples: too many questions have no answers, but some have.
        """
        questions = _questions(batches.data)
        answered = sum(bool(question.answers) for _, question in questions)
        if answered:  # the questions of a test set have no answers at all
            without = {"without answers": len(questions) - answered}
            coverage = Coverage("questions", answered, without)
            coverage.check(batches.data.max_broken_share)
        notice = lemmas.missing() if self.lemmatise else ""
        replies = self._replies(model, batches, lemmatise=self.lemmatise and not notice)
        scorable = _scorable(replies)
        left_out = {
            "whose image is not readable": len(questions) - len(replies),
            "without answers": len(replies) - len(scorable),
        }
        coverage = Coverage("questions", len(scorable), left_out)
        return EvaluationResult(
            answer_scores(scorable, self.variant),
            _examples(batches.data, replies, self.variant),
            join_notices(notice, coverage.notice()),
            coverage,
            server_answers(
                [(reply.question_id, reply.answer) for reply in replies],
                self.result_format,
            ),
        )

    def _replies(
        self, model: AnsweringModel, batches: EvaluationBatches, *, lemmatise: bool
    ) -> list[Reply]:
        questions = _questions(batches.data)

        def answer(batch: GenerationBatch) -> list[str]:
            arguments = {
                "questions": [questions[index][1].text for index in batch.indices],
                "image_of": batch.image_of,
                **batch.images,
                **self.settings,
            }
            if not self.candidates:
                return model.answer(**arguments)
            ranked = model.rank(candidates=self.candidates, **arguments)
            return [row[0].text for row in ranked]

        records = [record for record, _ in questions]
        texts = generate_texts(batches, records, "answering", answer)
        answers = [text for _, text in texts]
        if lemmatise:
            answers = lemmas.lemmatise(answers)
        return [
            Reply(number, *questions[number], answer)
            for (number, _), answer in zip(texts, answers, strict=True)
        ]


def _questions(data: EvaluationSet) -> list[tuple[int, Question]]:
    """List all questions, each with the index of its record."""
    questions = [
        (index, question)
        for index, record in enumerate(data.records)
        for question in record.questions
    ]
    if not questions:
        raise ValueError("VQA needs questions, and the records have none")
    return questions


def server_answers(
    answers: Sequence[tuple[int | str, str]], result_format: str
) -> list[dict[str, Any]]:
    """Return the list of answers that a benchmark server takes.

    Args:
      answers: pairs of question id and answer.
      result_format: "vqa" (VQAv2, OK-VQA) or "gqa".

    Raises:
      ValueError: another format.
    """
    check_result_format(result_format)
    if result_format == "vqa":
        return [{"question_id": key, "answer": answer} for key, answer in answers]
    return [{"questionId": str(key), "prediction": text} for key, text in answers]


def check_result_format(result_format: str) -> None:
    """Raise a ValueError unless `result_format` is one of `RESULT_FORMATS`."""
    if result_format not in RESULT_FORMATS:
        known = ", ".join(RESULT_FORMATS)
        raise ValueError(f"result_format {result_format!r}: there are {known}")


def _scorable(replies: Sequence[Reply]) -> list[AnsweredQuestion]:
    return [reply.answered() for reply in replies if reply.question.answers]


def _examples(
    data: EvaluationSet, replies: Sequence[Reply], variant: Variant
) -> list[Example]:
    with_accuracy = has_ten_answers(_scorable(replies))
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
                "key": data.records[reply.record].key,
                "question": reply.question.text,
                "said": reply.answer,
                "references": list(reply.question.answers),
                "scores": scores,
            }
        )
    return examples
