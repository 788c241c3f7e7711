"""VQA accuracy, and exact match for data sets with one answer per question (GQA).

The accuracy of an answer is the mean, over the sets that leave one person out, of
min(agreeing people / 3, 1) (Antol et al. 2015).
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
_NUM_ANSWERS = 10  # per question, for which VQA accuracy is defined


@dataclasses.dataclass(frozen=True)
class AnsweredQuestion:
    """A model's answer and people's answers.

    Attributes:
      prediction: the model's answer.
      references: people's answers: ten in VQAv2, one or more elsewhere.
      kind: of answer, such as "yes/no", "number" or "other", which is reported
        separately; "" is not.
    """

    prediction: str
    references: tuple[str, ...]
    kind: str = ""


def vqa_accuracy(
    questions: Iterable[AnsweredQuestion], variant: Variant = "official"
) -> dict[str, float]:
    """Compute VQA accuracy in percent, over all questions and by kind of answer.

    A question with a single reference scores 0; use `exact_match` for such data.

    Args:
      questions: predictions with their references.
      variant: how answers are normalised. "official" (as the evaluation server):
        prediction and references alike, and only if the references differ. "lavis" (the
        original's copy): the prediction always; of the references only the punctuation,
        and only if they differ.

    Returns:
      "accuracy", and "accuracy_KIND" for each kind.

    Raises:
      ValueError: the variant is unknown, there are no questions, or a question has no
        references.
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
    """Compute the VQA accuracy of one question, between 0 and 1.

    Raises:
      ValueError: the variant is unknown, or there are no references.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: there are {', '.join(VARIANTS)}")
    prediction, references = _normalised(question, variant)
    matches = sum(reference == prediction for reference in references)
    agreeing = (matches - (left_out == prediction) for left_out in references)
    scores = [min(count / _FULL_AGREEMENT, 1.0) for count in agreeing]
    return sum(scores) / len(scores)


def exact_match(questions: Sequence[AnsweredQuestion]) -> float:
    """Compute the percentage of predictions that `matches_exactly`."""
    if not questions:
        raise ValueError("there are no questions to score")
    return 100 * sum(map(matches_exactly, questions)) / len(questions)


def matches_exactly(question: AnsweredQuestion) -> bool:
    """Return True if the prediction equals any reference, both normalised."""
    return normalise_answer(question.prediction) in map(
        normalise_answer, question.references
    )


def answer_scores(
    questions: Sequence[AnsweredQuestion], variant: Variant = "official"
) -> dict[str, float]:
    """Compute exact match, and VQA accuracy where every question has ten answers.

    Returns:
      "exact_match" in percent, with either "vqa_accuracy" and "vqa_accuracy_KIND", or
      "exact_match_KIND"; {} without questions.
    """
    if not questions:
        return {}
    scores = {"exact_match": exact_match(questions)}
    if has_ten_answers(questions):
        accuracies = vqa_accuracy(questions, variant)
        return scores | {f"vqa_{name}": value for name, value in accuracies.items()}
    for kind in dict.fromkeys(question.kind for question in questions):
        if kind:
            own = [question for question in questions if question.kind == kind]
            scores[f"exact_match_{kind}"] = exact_match(own)
    return scores


def has_ten_answers(questions: Sequence[AnsweredQuestion]) -> bool:
    """Return True if VQA accuracy is defined for all questions."""
    return all(len(question.references) >= _NUM_ANSWERS for question in questions)


def _normalised(question: AnsweredQuestion, variant: Variant) -> tuple[str, list[str]]:
    """Normalise the prediction and the references for comparison."""
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
