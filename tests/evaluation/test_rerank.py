"""Re-ranking of similarity matrices, and its cache on disk."""

import numpy as np
import pytest

from blip2_jax.evaluation.rerank import NOT_RANKED, rerank
from blip2_jax.evaluation.rerank_cache import RerankCache


def test_rerank_scores_each_wanted_pair_once():
    cosine = np.array([[0.1, 0.9, 0.2, 0.5], [0.8, 0.0, 0.3, 0.7]], np.float32)
    scored = []

    def match(image, texts):
        scored.extend((image, int(text)) for text in texts)
        return texts.astype(np.float32)

    scores = rerank(cosine, match, 1)
    # Row winners: (0, 1) and (1, 0); of the texts: (1, 0), (0, 1), (1, 2), (1, 3).
    assert scored == [(0, 1), (1, 0), (1, 2), (1, 3)]
    x = NOT_RANKED
    np.testing.assert_allclose(scores.image_to_text, [[x, 1.9, x, x], [0.8, x, x, x]])
    np.testing.assert_allclose(
        scores.text_to_image, [[x, 0.8], [1.9, x], [x, 2.3], [x, 3.7]], rtol=1e-6
    )


def test_an_interrupted_reranking_continues(tmp_path):
    """Also if its last row was cut off; rows of another model are not used."""
    cosine = np.random.default_rng(0).random((5, 7), np.float32)
    scored = []

    def match(image, texts):
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(image)
        return (image + texts).astype(np.float32)

    def restart(key="a model"):
        cache = RerankCache(tmp_path / "rows", {"model": key})
        return cache, lambda: rerank(cosine, match, 7, cache=cache)

    with pytest.raises(KeyboardInterrupt):
        restart()[1]()
    (rows,) = (tmp_path / "rows").glob("rows-*.bin")
    rows.write_bytes(rows.read_bytes()[:-2])
    scored.clear()
    cache, run = restart()
    assert len(cache) == 2
    scores = run()
    assert scored == [2, 3, 4]
    whole = rerank(cosine, lambda image, texts: (image + texts).astype("f4"), 7)
    np.testing.assert_array_equal(scores.image_to_text, whole.image_to_text)
    assert len(restart()[0]) == 5
    assert len(restart("another")[0]) == 0
    cache, _ = restart()
    cache.delete()
    assert not (tmp_path / "rows").exists()


def test_other_candidates_of_an_image_are_scored_restart(tmp_path):
    cache = RerankCache(tmp_path / "rows", {})
    cache.add(3, np.array([1, 5]), np.array([0.5, 0.25], np.float32))
    cache = RerankCache(tmp_path / "rows", {})
    assert cache.find(3, np.array([1, 6])) is None
    np.testing.assert_array_equal(cache.find(3, np.array([1, 5])), [0.5, 0.25])


def test_more_candidates_than_there_are_means_all():
    cosine = np.array([[0.1, 0.9, 0.2, 0.5], [0.8, 0.0, 0.3, 0.7]], np.float32)
    scores = rerank(cosine, lambda _, texts: np.zeros(len(texts), np.float32), 9)
    np.testing.assert_array_equal(scores.image_to_text, cosine)
    np.testing.assert_array_equal(scores.text_to_image, cosine.T)
