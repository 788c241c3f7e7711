"""Retrieval metrics: recall at k between images and texts, from score matrices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

RECALL_AT = (1, 5, 10)


class Scores(NamedTuple):
    """Ranking scores of each direction; larger is better."""

    image_to_text: Float[Array, "images texts"]
    text_to_image: Float[Array, "texts images"]


class Ranks(NamedTuple):
    """Rank of the best right answer to each query; 0 is best."""

    images: Int[Array, " images"]
    texts: Int[Array, " texts"]


def recalls(scores: Scores, image_of_text: Int[Array, " texts"]) -> dict[str, float]:
    """Compute recall at 1, 5 and 10 in percent; an image may have several texts.

    Args:
      scores: of both directions.
      image_of_text: index of each text's image.

    Returns:
      "i2t_r1", ... "t2i_r10", the means "i2t_mean" and "t2i_mean" over k, and
      "r_mean", the mean of these two.

    Raises:
      ValueError: an image has no text.
    """
    ranks = best_right_ranks(scores, image_of_text)
    result = _recall("i2t", ranks.images) | _recall("t2i", ranks.texts)
    return result | {"r_mean": (result["i2t_mean"] + result["t2i_mean"]) / 2}


def best_right_ranks(scores: Scores, image_of_text: Int[Array, " texts"]) -> Ranks:
    """Rank the best right answer of each image and of each text.

    An image finds its text if *any* of its texts is among the first k. Equal scores are
    ordered as in the original (numpy's sort, reversed); with at least ten re-ranked
    candidates no recall depends on that order.

    Args:
      scores: of both directions.
      image_of_text: index of each text's image.

    Raises:
      ValueError: an image has no text.
    """
    images = scores.image_to_text.shape[0]
    right = image_of_text[None] == np.arange(images)[:, None]
    if not right.any(axis=1).all():
        raise ValueError(f"image {int(right.any(axis=1).argmin())} has no text")
    return Ranks(
        _best_right_rank(scores.image_to_text, right),
        _best_right_rank(scores.text_to_image, right.T),
    )


def top_columns(scores: Float[Array, "rows columns"], k: int) -> Int[Array, "rows top"]:
    """Return the columns of the k largest scores of each row, largest first."""
    return np.argsort(scores, axis=1)[:, ::-1][:, :k]


def top_mask(
    scores: Float[Array, "rows columns"], k: int
) -> Bool[Array, "rows columns"]:
    """Return a mask of the k largest scores of each row."""
    k = min(k, scores.shape[1])
    columns = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, columns, True, axis=1)
    return mask


def _best_right_rank(
    scores: Float[Array, "rows columns"], right: Bool[Array, "rows columns"]
) -> Int[Array, " rows"]:
    order = np.argsort(scores, axis=1)[:, ::-1]
    return np.take_along_axis(right, order, axis=1).argmax(axis=1)


def _recall(direction: str, ranks: Int[Array, " rows"]) -> dict[str, float]:
    values = {f"{direction}_r{k}": 100 * float(np.mean(ranks < k)) for k in RECALL_AT}
    return values | {f"{direction}_mean": sum(values.values()) / len(values)}
