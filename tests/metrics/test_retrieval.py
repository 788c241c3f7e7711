"""Recalls from score matrices."""

import numpy as np
import pytest

from blip2_jax.metrics.retrieval import Scores, recalls

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
