"""VQA baseline without a model: the most common answers of the training questions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from blip2_jax.data.sources.base import Question
from blip2_jax.data.sources.reading import readable_records
from blip2_jax.data.sources.registry import build_source
from blip2_jax.evaluation.breakdown import question_type
from blip2_jax.metrics.vqa import AnsweredQuestion, exact_match
from blip2_jax.metrics.vqa_answers import normalise_answer


def answered_questions(specs: Iterable[Mapping[str, Any]]) -> list[Question]:
    """Read the questions with answers of some sources; broken records are left out."""
    return [
        question
        for source in map(build_source, specs)
        for record in readable_records(source)
        for question in record.questions
        if question.answers
    ]


def majority_scores(
    train: Sequence[Question], test: Sequence[Question]
) -> dict[str, float]:
    """Score two baselines that answer with a most common training answer.

    Args:
      train: questions whose normalised answers are counted; of equally common answers
        the first one is taken.
      test: questions to answer; one whose type `train` lacks is answered with the most
        common answer of all.

    Returns:
      Exact match in percent, by name of the baseline.
    """
    overall: Counter[str] = Counter()
    by_type: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        answers = [normalise_answer(answer) for answer in question.answers]
        overall.update(answers)
        by_type[question_type(question.text)].update(answers)
    majority = overall.most_common(1)[0][0]
    type_majority = {
        name: counts.most_common(1)[0][0] for name, counts in by_type.items()
    }
    type_answers = [type_majority.get(question_type(q.text), majority) for q in test]
    return {
        "the commonest answer": _exact_match(test, [majority] * len(test)),
        "the commonest of the question's type": _exact_match(test, type_answers),
    }


def _exact_match(questions: Sequence[Question], answers: Sequence[str]) -> float:
    return exact_match(
        [
            AnsweredQuestion(answer, question.answers)
            for answer, question in zip(answers, questions, strict=True)
        ]
    )
