"""Scores without a model: the commonest answers of the training questions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from blip2_jax.data.sources.base import BrokenSample, Question
from blip2_jax.data.sources.registry import build_source
from blip2_jax.evaluation.breakdown import question_type
from blip2_jax.metrics.vqa import AnsweredQuestion, exact_match
from blip2_jax.metrics.vqa_answers import normalise_answer


def answered_questions(specs: Iterable[Mapping[str, Any]]) -> list[Question]:
    """The questions of some sources that have answers; broken records are left out."""
    found = []
    for source in map(build_source, specs):
        for index in range(len(source)):
            try:
                asked = source.record(index).questions
            except BrokenSample:
                continue
            found += [question for question in asked if question.answers]
    return found


def guesses(train: Sequence[Question], test: Sequence[Question]) -> dict[str, float]:
    """Exact match in percent, by name of the guess.

    Args:
      train: where the commonest answers come from, each counted in its normalised form;
        of two as common, the one that was met first.
      test: what is answered; a question of a type that `train` has not is answered
        with the commonest of all.
    """
    overall: Counter[str] = Counter()
    by_type: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in train:
        answers = [normalise_answer(answer) for answer in question.answers]
        overall.update(answers)
        by_type[question_type(question.text)].update(answers)
    common = overall.most_common(1)[0][0]
    of_type = {kind: found.most_common(1)[0][0] for kind, found in by_type.items()}
    return {
        "the commonest answer": _score(test, [common] * len(test)),
        "the commonest of the question's type": _score(
            test, [of_type.get(question_type(each.text), common) for each in test]
        ),
    }


def _score(test: Sequence[Question], said: Sequence[str]) -> float:
    return exact_match(
        [
            AnsweredQuestion(answer, question.answers)
            for answer, question in zip(said, test, strict=True)
        ]
    )
