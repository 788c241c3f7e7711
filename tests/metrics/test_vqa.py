"""VQA accuracy by hand."""

import pytest

from blip2_jax.metrics.vqa import (
    AnsweredQuestion,
    answer_scores,
    exact_match,
    vqa_accuracy,
)


def people(**counts):
    """Ten answers: `people(cat=3, dog=7)`."""
    return tuple(answer for answer, count in counts.items() for _ in range(count))


def accuracy(prediction, references, variant="official"):
    questions = [AnsweredQuestion(prediction, references)]
    return vqa_accuracy(questions, variant)["accuracy"]


@pytest.mark.parametrize(
    ("agreeing", "percent"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (10, 100)]
)
def test_mean_over_nine_of_ten(agreeing, percent):
    references = people(cat=agreeing, dog=10 - agreeing)
    assert accuracy("cat", references) == pytest.approx(percent)


def test_variants_differ_in_what_they_normalise():
    # All agree: the official rule leaves both sides as they are.
    assert accuracy("The Cat", people(**{"The Cat": 10})) == 100
    assert accuracy("The Cat", people(**{"The Cat": 10}), "lavis") == 0
    # They differ: only the official rule lower-cases and cleans the references.
    differing = people(**{"Two": 5, "3": 5})
    assert accuracy("two", differing) == 100
    assert accuracy("two", differing, "lavis") == 0
    assert accuracy("2", people(**{"2": 5, "3": 5}), "lavis") == 100


def test_by_kind():
    result = vqa_accuracy(
        [
            AnsweredQuestion("yes", people(yes=10), "yes/no"),
            AnsweredQuestion("2", people(**{"4": 10}), "number"),
        ]
    )
    assert result == {
        "accuracy": 50,
        "accuracy_yes/no": 100,
        "accuracy_number": 0,
    }


def test_exact_match():
    questions = [AnsweredQuestion("A red Cup!", ("red cup", "mug"))]
    assert exact_match([*questions, AnsweredQuestion("b", ("c",))]) == 50


def test_answer_scores_depend_on_the_number_of_answers():
    questions = [
        AnsweredQuestion("yes", ("yes",) * 10, "yes/no"),
        AnsweredQuestion("3", ("2",) * 10, "number"),
    ]
    assert answer_scores(questions) == {
        "exact_match": 50,
        "vqa_accuracy": 50,
        "vqa_accuracy_yes/no": 100,
        "vqa_accuracy_number": 0,
    }
    assert answer_scores([AnsweredQuestion("a", ("a",))]) == {"exact_match": 100}


def test_errors():
    with pytest.raises(ValueError, match="variant 'mine': there are"):
        accuracy("a", ("a",), "mine")
    with pytest.raises(ValueError, match="no reference"):
        accuracy("a", ())
    for metric in (vqa_accuracy, exact_match):
        with pytest.raises(ValueError, match="no questions"):
            metric([])
