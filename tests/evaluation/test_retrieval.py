"""Recalls and two-stage scores of similarity matrices."""

import numpy as np
import pytest

from blip2_jax.evaluation.rerank_cache import FinishedRows
from blip2_jax.evaluation.retrieval import NOT_RANKED, Scores, recalls, rerank

# Two images; texts 0, 1, 2 belong to the first, text 3 to the second.
OWNER = np.array([0, 0, 0, 1])


def test_any_of_an_images_texts_counts():
    cosine = np.array([[0.1, 0.9, 0.2, 0.5], [0.8, 0.0, 0.3, 0.7]], np.float32)
    result = recalls(Scores(cosine, cosine.T), OWNER)
    assert result["i2t_r1"] == 50  # image 0 by text 1; image 1 prefers text 0
    assert result["t2i_r1"] == 50  # texts 1 and 3
    assert result["i2t_r5"] == result["t2i_r5"] == 100
    assert result["r_mean"] == pytest.approx(250 / 3)


def test_an_image_without_text_is_an_error():
    cosine = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match="image 2 has no text"):
        recalls(Scores(cosine, cosine.T), OWNER)


def test_rerank_scores_each_wanted_pair_once():
    cosine = np.array([[0.1, 0.9, 0.2, 0.5], [0.8, 0.0, 0.3, 0.7]], np.float32)
    asked = []

    def match(image, texts):
        asked.extend((image, int(text)) for text in texts)
        return texts.astype(np.float32)

    scores = rerank(cosine, match, 1)
    # Row winners: (0, 1) and (1, 0); of the texts: (1, 0), (0, 1), (1, 2), (1, 3).
    assert asked == [(0, 1), (1, 0), (1, 2), (1, 3)]
    x = NOT_RANKED
    np.testing.assert_allclose(scores.image_to_text, [[x, 1.9, x, x], [0.8, x, x, x]])
    np.testing.assert_allclose(
        scores.text_to_image, [[x, 0.8], [1.9, x], [x, 2.3], [x, 3.7]], rtol=1e-6
    )


def test_a_reranking_that_was_killed_goes_on(tmp_path):
    """Also after its last row was cut off; another model's rows are not taken."""
    cosine = np.random.default_rng(0).random((5, 7), np.float32)
    asked = []

    def match(image, texts):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(image)
        return (image + texts).astype(np.float32)

    def again(what="a model"):
        finished = FinishedRows(tmp_path / "rows", {"what": what})
        return finished, lambda: rerank(cosine, match, 7, finished=finished)

    with pytest.raises(KeyboardInterrupt):
        again()[1]()
    (rows,) = (tmp_path / "rows").glob("rows-*.bin")
    rows.write_bytes(rows.read_bytes()[:-2])
    asked.clear()
    finished, go_on = again()
    assert len(finished) == 2
    scores = go_on()
    assert asked == [2, 3, 4]
    whole = rerank(cosine, lambda image, texts: (image + texts).astype("f4"), 7)
    np.testing.assert_array_equal(scores.image_to_text, whole.image_to_text)
    assert len(again()[0]) == 5
    assert len(again("another")[0]) == 0
    finished, _ = again()
    finished.delete()
    assert not (tmp_path / "rows").exists()


def test_other_candidates_of_an_image_are_scored_again(tmp_path):
    finished = FinishedRows(tmp_path / "rows", {})
    finished.add(3, np.array([1, 5]), np.array([0.5, 0.25], np.float32))
    finished = FinishedRows(tmp_path / "rows", {})
    assert finished.find(3, np.array([1, 6])) is None
    np.testing.assert_array_equal(finished.find(3, np.array([1, 5])), [0.5, 0.25])


def test_more_candidates_than_there_are_means_all():
    cosine = np.array([[0.1, 0.9, 0.2, 0.5], [0.8, 0.0, 0.3, 0.7]], np.float32)
    scores = rerank(cosine, lambda _, texts: np.zeros(len(texts), np.float32), 9)
    np.testing.assert_array_equal(scores.image_to_text, cosine)
    np.testing.assert_array_equal(scores.text_to_image, cosine.T)
