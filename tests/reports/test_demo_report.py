"""The demo's table and page, from invented results."""

import numpy as np
import pytest

from blip2_jax.evaluation import shapes_exam
from blip2_jax.reports import demo_report
from blip2_jax.reports.attention_figures import PictureMaps


@pytest.fixture(scope="module")
def exam():
    return shapes_exam.make_exam("heldout", 12, 4)


def fake_results(exam):
    count = len(exam.scenes)
    order = np.argsort(-np.eye(count), axis=1, kind="stable")
    results = {"majority": shapes_exam.majority_exam(exam, count=20)}
    answers = [
        [question.answer for question in per_scene] for per_scene in exam.questions
    ]
    for condition in shapes_exam.CONDITIONS:
        retrieval = shapes_exam.RetrievalResult(np.eye(count), order, 1.0, 1.0)
        results[f"retrieval/{condition}"] = retrieval
        results[f"matching/{condition}"] = 0.75
        for name in ("stage1", "opt", "t5"):
            captions = shapes_exam.CaptionResult(exam.captions, 0.5, 0.25)
            results[f"{name}/captions/{condition}"] = captions
        for name in ("opt", "t5"):
            results[f"{name}/answers/{condition}"] = shapes_exam.score_answers(
                exam, answers
            )
    words = ["a", "red", "circle"]
    maps = np.random.default_rng(0).random((3, 4, 4)).astype(np.float32)
    pictures = [PictureMaps(image, words, maps, "x") for image in exam.images[:8]]
    return results | {"maps": pictures}


def test_table_and_page(exam):
    results = fake_results(exam)
    scores = demo_report.demo_scores(results)
    text = demo_report.scores_as_text(scores)
    assert "image to text, first of 12" in text
    assert text.count("100 %") >= 6
    curves = {"stage1": [{"step": 1, "loss_itc": 2.0}, {"step": 9, "loss_itc": 1.0}]}
    page = demo_report.demo_page(exam, results, scores, curves, "a minute")
    assert exam.questions[0][0].text in page
    assert page.count("data:image/png") == 12 + 8 + 8 * (1 + 3)
    assert "<polyline" in page
