"""VQA accuracy, and the exact match of data sets with one answer a question (GQA).

An answer given by three of the other nine people counts fully: the accuracy of a
question is the mean, over the sets that leave one person out, of min(agreeing / 3, 1)
(Antol et al. 2015).
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from blip2_jax.metrics.vqa_answers import normalise_answer, strip_marks

Variant = Literal["official", "lavis"]
VARIANTS: tuple[str, ...] = get_args(Variant)

_FULL_AGREEMENT = 3


@dataclasses.dataclass(frozen=True)
class AnsweredQuestion:
    """One prediction and what people answered.

    Attributes:
      prediction: the model's answer.
      references: people's answers, ten in VQAv2; one or more elsewhere.
      kind: reported apart, as "yes/no", "number", "other"; "" is not reported.
    """

    prediction: str
    references: tuple[str, ...]
    kind: str = ""


def vqa_accuracy(
    questions: Iterable[AnsweredQuestion], variant: Variant = "official"
) -> dict[str, float]:
    """VQA accuracy in percent, over all questions and by kind of answer.

    Args:
      questions: predictions with their references.
      variant: how answers are normalised. "official" (as the evaluation server):
        prediction and references alike, and only where the references differ.
        "lavis" (the original's copy): the prediction always, the references only
        by their marks, and only where they differ.

    Returns:
      "accuracy", and "accuracy_KIND" for each kind.

    A question with a single reference scores nothing here, since nobody else is left
    to agree: use `exact_match`.

    Raises:
      ValueError: an unknown variant, no questions, or one without references.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for question in questions:
        score = agreement(question, variant)
        scores["accuracy"].append(score)
        if question.kind:
            scores[f"accuracy_{question.kind}"].append(score)
    if not scores:
        raise ValueError("there are no questions to score")
    return {name: 100 * sum(each) / len(each) for name, each in scores.items()}


def agreement(question: AnsweredQuestion, variant: Variant = "official") -> float:
    """VQA accuracy of one question, between 0 and 1; see `vqa_accuracy`.

    It is the mean over the sets that leave one reference out; a single reference
    leaves nobody to agree: 0.

    Raises:
      ValueError: an unknown variant, or no references.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: there are {', '.join(VARIANTS)}")
    prediction, references = _normalised(question, variant)
    matches = sum(reference == prediction for reference in references)
    agreeing = (matches - (reference == prediction) for reference in references)
    scores = [min(count / _FULL_AGREEMENT, 1.0) for count in agreeing]
    return sum(scores) / len(scores)


def exact_match(questions: Sequence[AnsweredQuestion]) -> float:
    """Share in percent of predictions equal to any reference, both normalised."""
    if not questions:
        raise ValueError("there are no questions to score")
    return 100 * sum(map(matches_exactly, questions)) / len(questions)


def matches_exactly(question: AnsweredQuestion) -> bool:
    """Whether the prediction is equal to any reference, both normalised."""
    return normalise_answer(question.prediction) in map(
        normalise_answer, question.references
    )


def _normalised(question: AnsweredQuestion, variant: Variant) -> tuple[str, list[str]]:
    """The prediction and the references as they are compared."""
    if not question.references:
        raise ValueError("a question has no reference answers")
    prediction = _one_line(question.prediction)
    references = [_one_line(reference) for reference in question.references]
    differ = len(set(references)) > 1
    if variant == "lavis":
        if differ:
            references = [strip_marks(reference) for reference in references]
        return normalise_answer(prediction), references
    if differ:
        references = [normalise_answer(reference) for reference in references]
        prediction = normalise_answer(prediction)
    return prediction, references


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
