"""Most common training answers as a baseline."""

import pytest

from blip2_jax.data.sources.base import Question
from blip2_jax.evaluation.majority_baseline import answered_questions, majority_scores


def make_questions(*pairs):
    return [Question(text, (answer,)) for text, answer in pairs]


TRAIN = make_questions(
    ("how many chairs?", "two"),
    ("how many beds?", "2"),
    ("how many cups?", "3"),
    ("what is red?", "a chair"),
    ("what is old?", "chair"),
    ("what is new?", "chair"),
    ("what color is it?", "red"),
)


def test_the_commonest_answers_overall_and_by_type():
    """Answers count in their normalised form: "two" is "2", "a chair" is "chair"."""
    test = make_questions(
        ("How many windows?", "2"),
        ("what color is she?", "red"),
        ("what is blue?", "the chair"),
        ("where is it?", "chair"),
        ("what is it?", "x"),
    )
    scores = majority_scores(TRAIN, test)
    assert scores["the commonest answer"] == pytest.approx(40)
    assert scores["the commonest of the question's type"] == pytest.approx(80)


def test_questions_of_sources():
    spec = {"kind": "shapes", "split": "train", "size": 4, "count": 3}
    assert len(answered_questions([spec | {"texts": "questions"}])) == 12
    assert answered_questions([spec]) == []
