"""Retrieval: recall at k both ways, by ITC alone or re-ranked by ITM.

Two stages as in the original: every image meets every text by ITC (the max over
queries of the cosine, no temperature); the k best of each row are scored again by
the matching head, and their score is the logit of "match" (mean over queries, no
softmax) plus that cosine. All others score -100.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import rich.console
import rich.progress
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

NOT_RANKED = -100.0
RECALL_AT = (1, 5, 10)

# (image, texts) -> the texts' match logits with this image.
MatchImage = Callable[[int, Int[Array, " n"]], Float[Array, " n"]]


class Scores(NamedTuple):
    """What each direction ranks by; larger is better."""

    image_to_text: Float[Array, "N M"]
    text_to_image: Float[Array, "M N"]


def similarity(
    queries: Float[Array, "N Q C"], texts: Float[Array, "M C"], rows: int = 64
) -> Float[Array, "N M"]:
    """Cosine of every image with every text: the max over the image's queries.

    Args:
      queries: unit vectors of the images' queries.
      texts: unit vectors of the texts.
      rows: images at a time, to bound memory (rows x Q x M floats).
    """
    parts = [
        (queries[start : start + rows] @ texts.T).max(axis=1)
        for start in range(0, len(queries), rows)
    ]
    return np.concatenate(parts).astype(np.float32)


def rerank(cosine: Float[Array, "N M"], match: MatchImage, k: int) -> Scores:
    """Score the k best of every row of both directions by the matching head.

    A pair wanted by both directions is scored once, and an image's pairs are scored
    together, so that its cross-attention keys and values are computed once. A terminal
    shows how far it is.

    Args:
      cosine: from `similarity`.
      match: gives the match logits of one image with some texts.
      k: candidates of a text among the images and of an image among the texts;
        more than there are means all.

    Returns:
      Logit plus cosine for candidates, `NOT_RANKED` elsewhere.
    """
    for_image = _top(cosine, k)
    for_text = _top(cosine.T, k).T
    score = np.full(cosine.shape, NOT_RANKED, np.float32)
    wanted = for_image | for_text
    for image in rich.progress.track(
        range(len(wanted)),
        "re-ranking",
        console=rich.console.Console(file=sys.stderr),
        disable=not sys.stderr.isatty(),
    ):
        texts = np.flatnonzero(wanted[image])
        if len(texts):
            score[image, texts] = match(image, texts) + cosine[image, texts]
    return Scores(
        np.where(for_image, score, np.float32(NOT_RANKED)),
        np.where(for_text, score, np.float32(NOT_RANKED)).T,
    )


def recalls(scores: Scores, image_of_text: Int[Array, " M"]) -> dict[str, float]:
    """Recall at 1, 5 and 10 in percent; an image may have several texts.

    An image finds its text when *any* of its texts is among the first k. Equal scores
    are ordered as the original orders them (numpy's sort, reversed); with at least ten
    re-ranked candidates no recall depends on it.

    Args:
      scores: both directions, see `Scores`.
      image_of_text: the row of each text's image.

    Returns:
      "i2t_r1", ... "t2i_r10", the means "i2t_mean" and "t2i_mean" over k, and
      "r_mean", the mean of these two.

    Raises:
      ValueError: an image without a text.
    """
    images = scores.image_to_text.shape[0]
    own = image_of_text[None] == np.arange(images)[:, None]
    if not own.any(axis=1).all():
        raise ValueError(f"image {int(own.any(axis=1).argmin())} has no text")
    result = {
        **_recall("i2t", _first_hit(scores.image_to_text, own)),
        **_recall("t2i", _first_hit(scores.text_to_image, own.T)),
    }
    return result | {"r_mean": (result["i2t_mean"] + result["t2i_mean"]) / 2}


def _top(scores: Float[Array, "N M"], k: int) -> Bool[Array, "N M"]:
    """Where the k largest of each row are."""
    k = min(k, scores.shape[1])
    columns = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, columns, True, axis=1)
    return chosen


def _first_hit(
    scores: Float[Array, "N M"], right: Bool[Array, "N M"]
) -> Int[Array, " N"]:
    """The rank (0 is best) of the best right answer of each row."""
    order = np.argsort(scores, axis=1)[:, ::-1]
    return np.take_along_axis(right, order, axis=1).argmax(axis=1)


def _recall(name: str, rank: Int[Array, " N"]) -> dict[str, float]:
    values = {f"{name}_r{k}": 100 * float(np.mean(rank < k)) for k in RECALL_AT}
    return values | {f"{name}_mean": sum(values.values()) / len(values)}
