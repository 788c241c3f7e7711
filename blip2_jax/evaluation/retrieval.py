"""Retrieval: recall at k both ways, by ITC alone or re-ranked by ITM.

Two stages as in the original: every image meets every text by ITC (the max over
queries of the cosine, no temperature); the k best of each row are scored again by
the matching head, and their score is the logit of "match" (mean over queries, no
softmax) plus that cosine. All others score -100.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from blip2_jax.evaluation.rerank_cache import FinishedRows
from blip2_jax.parallel import hosts
from blip2_jax.parallel.progress import track_progress

NOT_RANKED = -100.0
RECALL_AT = (1, 5, 10)

# (image, texts) -> the texts' match logits with this image.
MatchImage = Callable[[int, Int[Array, " candidates"]], Float[Array, " candidates"]]


class Scores(NamedTuple):
    """What each direction ranks by; larger is better."""

    image_to_text: Float[Array, "images texts"]
    text_to_image: Float[Array, "texts images"]


class Ranks(NamedTuple):
    """Where the first right answer stands, 0 is best."""

    images: Int[Array, " images"]
    texts: Int[Array, " texts"]


def rerank(
    cosine: Float[Array, "images texts"],
    match: MatchImage,
    k: int,
    *,
    share: hosts.Share | None = None,
    finished: FinishedRows | None = None,
) -> Scores:
    """Score the k best of every row of both directions by the matching head.

    A pair wanted by both directions is scored once, and an image's pairs are scored
    together, so that its cross-attention keys and values are computed once.

    Args:
      cosine: from `max_query_similarity`.
      match: gives the match logits of one image with some texts.
      k: candidates of a text among the images and of an image among the texts;
        more than there are means all.
      share: the images that this process scores; the others' scores are gathered.
      finished: rows that need not be scored again; new ones are added.

    Returns:
      Logit plus cosine for candidates, `NOT_RANKED` elsewhere.
    """
    share = share or hosts.Share()
    for_image, for_text = _top(cosine, k), _top(cosine.T, k).T
    wanted = for_image | for_text
    logits: list[Float[Array, " candidates"]] = []
    for image in track_progress(share.indices(len(cosine)), "re-ranking"):
        texts = np.flatnonzero(wanted[image])
        found = finished.find(image, texts) if finished is not None else None
        if found is None:
            found = match(image, texts)
            if finished is not None:
                finished.add(image, texts, found)
        logits.append(found)
    mine = np.concatenate([np.zeros(0, np.float32), *logits])
    score = cosine.copy()
    for index, part in enumerate(hosts.gather_arrays(mine, share)):
        rows = slice(index, None, share.count)
        score[rows][wanted[rows]] += part
    return Scores(
        np.where(for_image, score, np.float32(NOT_RANKED)),
        np.where(for_text, score, np.float32(NOT_RANKED)).T,
    )


def recalls(scores: Scores, image_of_text: Int[Array, " texts"]) -> dict[str, float]:
    """Recall at 1, 5 and 10 in percent; an image may have several texts.

    Args:
      scores: both directions, see `Scores`.
      image_of_text: the row of each text's image.

    Returns:
      "i2t_r1", ... "t2i_r10", the means "i2t_mean" and "t2i_mean" over k, and
      "r_mean", the mean of these two.

    Raises:
      ValueError: an image without a text.
    """
    ranks = first_hits(scores, image_of_text)
    result = _recall("i2t", ranks.images) | _recall("t2i", ranks.texts)
    return result | {"r_mean": (result["i2t_mean"] + result["t2i_mean"]) / 2}


def first_hits(scores: Scores, image_of_text: Int[Array, " texts"]) -> Ranks:
    """The rank (0 is best) of the best right answer of each image and each text.

    An image finds its text when *any* of its texts is among the first k. Equal scores
    are ordered as the original orders them (numpy's sort, reversed); with at least ten
    re-ranked candidates no recall depends on it.

    Args:
      scores, image_of_text: as in `recalls`.

    Raises:
      ValueError: an image without a text.
    """
    images = scores.image_to_text.shape[0]
    own = image_of_text[None] == np.arange(images)[:, None]
    if not own.any(axis=1).all():
        raise ValueError(f"image {int(own.any(axis=1).argmin())} has no text")
    return Ranks(
        _first_hit(scores.image_to_text, own), _first_hit(scores.text_to_image, own.T)
    )


def best(scores: Float[Array, "images texts"], k: int) -> Int[Array, "images top"]:
    """The columns of the k largest of each row, largest first."""
    return np.argsort(scores, axis=1)[:, ::-1][:, :k]


def _top(scores: Float[Array, "images texts"], k: int) -> Bool[Array, "images texts"]:
    """Where the k largest of each row are."""
    k = min(k, scores.shape[1])
    columns = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, columns, True, axis=1)
    return chosen


def _first_hit(
    scores: Float[Array, "images texts"], right: Bool[Array, "images texts"]
) -> Int[Array, " images"]:
    """The rank (0 is best) of the best right answer of each row."""
    order = np.argsort(scores, axis=1)[:, ::-1]
    return np.take_along_axis(right, order, axis=1).argmax(axis=1)


def _recall(name: str, rank: Int[Array, " images"]) -> dict[str, float]:
    values = {f"{name}_r{k}": 100 * float(np.mean(rank < k)) for k in RECALL_AT}
    return values | {f"{name}_mean": sum(values.values()) / len(values)}
