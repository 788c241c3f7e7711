"""The exam of the shapes world, without a model."""

import numpy as np
import pytest

from blip2_jax.evaluation import shapes_exam


@pytest.fixture(scope="module")
def exam():
    return shapes_exam.make_exam("heldout", 12, 4)


def test_images_of_an_exam(exam):
    blank, shuffled = exam.images_for("blank"), exam.images_for("shuffled")
    assert blank.shape == shuffled.shape == exam.images.shape == (12, 64, 64, 3)
    assert np.ptp(blank[0].reshape(-1, 3), axis=0).max() == 0
    np.testing.assert_array_equal(shuffled[6], exam.images[0])
    with pytest.raises(ValueError, match="right, blank, shuffled"):
        exam.images_for("wrong")


def test_answers_are_compared_with_the_expected_ones(exam):
    right = [
        [question.answer for question in per_scene] for per_scene in exam.questions
    ]
    assert shapes_exam.score_answers(exam, right).accuracy == 1.0
    right[0][0] = "nonsense"
    marked = shapes_exam.score_answers(exam, right)
    assert marked.accuracy == 1 - 1 / 48
    assert marked.by_kind[exam.questions[0][0].kind] < 1


def test_the_majority_knows_little(exam):
    many = shapes_exam.make_exam("heldout", 100)
    assert 0.1 < shapes_exam.majority_exam(many, count=300).accuracy < 0.45
