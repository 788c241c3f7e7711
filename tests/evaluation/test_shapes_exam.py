"""The exam of the shapes world and the demo's report, without a model."""

import numpy as np
import pytest

from blip2_jax.evaluation import shapes_exam
from blip2_jax.reports import demo_report, pictures


@pytest.fixture(scope="module")
def exam():
    return shapes_exam.make_exam("heldout", 12, 4)


def test_pictures_of_an_exam(exam):
    blank, shuffled = exam.pictures("blank"), exam.pictures("shuffled")
    assert blank.shape == shuffled.shape == exam.images.shape == (12, 64, 64, 3)
    assert np.ptp(blank[0].reshape(-1, 3), axis=0).max() == 0
    np.testing.assert_array_equal(shuffled[6], exam.images[0])
    with pytest.raises(ValueError, match="right, blank, shuffled"):
        exam.pictures("wrong")


def test_marks(exam):
    right = [[question.answer for question in asked] for asked in exam.questions]
    assert shapes_exam.mark(exam, right).accuracy == 1.0
    right[0][0] = "nonsense"
    marked = shapes_exam.mark(exam, right)
    assert marked.accuracy == 1 - 1 / 48
    assert marked.by_kind[exam.questions[0][0].kind] < 1


def test_the_majority_knows_little(exam):
    many = shapes_exam.make_exam("heldout", 100)
    assert 0.1 < shapes_exam.majority_answers(many, count=300).accuracy < 0.45


def fake_results(exam):
    count = len(exam.scenes)
    order = np.argsort(-np.eye(count), axis=1, kind="stable")
    results = {"majority": shapes_exam.majority_answers(exam, count=20)}
    answers = [[question.answer for question in asked] for asked in exam.questions]
    for which in shapes_exam.PICTURES:
        found = shapes_exam.Retrieval(np.eye(count), order, 1.0, 1.0)
        results[f"retrieval/{which}"] = found
        results[f"matching/{which}"] = 0.75
        for name in ("stage1", "opt", "t5"):
            said = shapes_exam.Captions(exam.captions, 0.5, 0.25)
            results[f"{name}/captions/{which}"] = said
        for name in ("opt", "t5"):
            results[f"{name}/answers/{which}"] = shapes_exam.mark(exam, answers)
    return results | {"maps": np.random.default_rng(0).random((8, 3, 4, 4))}


def test_table_and_page(exam):
    results = fake_results(exam)
    table = demo_report.make_table(results)
    text = demo_report.as_text(table)
    assert "image to text, first of 12" in text
    assert text.count("100 %") >= 6
    curves = {"stage1": [{"step": 1, "loss_itc": 2.0}, {"step": 9, "loss_itc": 1.0}]}
    page = demo_report.make_page(exam, results, table, curves, "a minute")
    assert exam.questions[0][0].text in page
    assert page.count("data:image/png") == 12 + 8 + 8 * 4
    assert "<polyline" in page


def test_overlay_is_bright_where_the_weight_is():
    weights = np.zeros((4, 4), np.float32)
    weights[0, 0] = 0.3
    seen = pictures.overlay(np.full((64, 64, 3), 200, np.uint8), weights)
    assert seen[2, 2].min() > 150
    assert seen[-3, -3].max() < 60
