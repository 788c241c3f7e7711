"""Scores of many pairs equal those of the pairs one by one."""

import numpy as np
import pytest

from tests.support import tolerances
from tests.support.public_models import photos, stage1

TEXTS = ["a cat", "a dog on the street", "what color is the cat ?"]


def test_all_pairs_equal_single_pairs(monkeypatch):
    model, images = stage1(batch_size=2), photos(5)
    largest = []
    encode = model._encode_images
    monkeypatch.setattr(
        model, "_encode_images", lambda rows: largest.append(len(rows)) or encode(rows)
    )
    matrix = model.match(images, TEXTS, pairs="all")
    assert matrix.itc.shape == matrix.itm.shape == (5, 3)
    assert largest == [2, 2, 1]  # each image once, and never more than a batch
    for row, image in enumerate(images):
        for column, text in enumerate(TEXTS):
            single = stage1().match(image, text)
            tolerances.assert_values(matrix.itc[row, column], single.itc[0])
            tolerances.assert_values(matrix.itm[row, column], single.itm[0])
    assert np.ptp(matrix.itc) > 0.01


def test_other_kinds_of_pairs_are_refused():
    with pytest.raises(ValueError, match="pairs 'matrix': there are rows, all"):
        stage1().match(photos(1), TEXTS, pairs="matrix")


@pytest.mark.parametrize("score", ["itc", "itm"])
def test_own_texts_of_each_image_equal_single_pairs(score):
    model, images = stage1(batch_size=2), photos(3)
    texts = [TEXTS[:1], TEXTS, TEXTS[1:]]
    rows = model.image_text_similarity(images, texts, score=score)
    for image, own, row in zip(images, texts, rows, strict=True):
        single = getattr(stage1().match(image, own), score)
        tolerances.assert_values(row, single)


def test_long_texts_are_cut_and_wrong_arguments_are_refused():
    model, image = stage1(), photos(1)
    limit = model.model.config.qformer.max_positions
    long, longer = ("cat " * number for number in (limit, 2 * limit))
    (row,) = model.image_text_similarity(image, [[long, longer]])
    assert row[0] == row[1]
    with pytest.raises(ValueError, match="1 images, but texts of 2"):
        model.image_text_similarity(image, [TEXTS, TEXTS])
    with pytest.raises(ValueError, match="score 'cosine': there are itc, itm"):
        model.image_text_similarity(image, [TEXTS], score="cosine")
