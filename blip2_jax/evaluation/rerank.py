"""Second stage of retrieval: the matching head scores the best candidates again.

As in the original, the first stage compares every image with every text by ITC (the
max over queries of the cosine, no temperature). The k best of each row then get the
logit of "match" (the mean over queries, no softmax) plus that cosine; all others get
-100.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from blip2_jax.evaluation.rerank_cache import RerankCache
from blip2_jax.metrics.retrieval import Scores, top_mask
from blip2_jax.parallel import hosts
from blip2_jax.parallel.progress import track_progress

NOT_RANKED = -100.0

# (image, texts) -> match logits of this image with these texts.
MatchImage = Callable[[int, Int[Array, " candidates"]], Float[Array, " candidates"]]


def rerank(
    cosine: Float[Array, "images texts"],
    match: MatchImage,
    k: int,
    *,
    share: hosts.Share | None = None,
    cache: RerankCache | None = None,
) -> Scores:
    """Score the k best candidates of every image and every text by the matching head.

    A pair that both directions select is scored once. The pairs of an image are scored
    together, so that its cross-attention keys and values are computed once.

    Args:
      cosine: ITC similarities.
      match: gives the match logits of one image with some texts.
      k: candidates per image and per text; more than there are means all.
      share: the images that this process scores; by default all.
      cache: finished rows, which are not scored again; new rows are added.

    Returns:
      Logit plus cosine of the candidates, `NOT_RANKED` elsewhere, in every process.
    """
    share = share or hosts.Share()
    for_image, for_text = top_mask(cosine, k), top_mask(cosine.T, k).T
    selected = for_image | for_text
    logits: list[Float[Array, " candidates"]] = []
    own = share.indices(len(cosine))
    for image in track_progress(own, "re-ranking", "images"):
        texts = np.flatnonzero(selected[image])
        row = cache.find(image, texts) if cache is not None else None
        if row is None:
            row = match(image, texts)
            if cache is not None:
                cache.add(image, texts, row)
        logits.append(row)
    own_logits = np.concatenate([np.zeros(0, np.float32), *logits])
    scores = cosine.copy()
    for index, part in enumerate(hosts.gather_arrays(own_logits, share)):
        rows = slice(index, None, share.count)
        scores[rows][selected[rows]] += part
    return Scores(
        np.where(for_image, scores, np.float32(NOT_RANKED)),
        np.where(for_text, scores, np.float32(NOT_RANKED)).T,
    )
