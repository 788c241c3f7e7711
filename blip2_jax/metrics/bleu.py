"""BLEU as a function of sums over captions.

pycocoevalcap counts the n-grams, but computes BLEU only from captions; the bootstrap
needs it from the sums of drawn captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

ORDERS = 4


def bleu_counts(caption: str, references: Sequence[str]) -> list[int]:
    """Count what a caption adds to BLEU's sums.

    Args:
      caption: words between single spaces (see `blip2_jax.metrics.captions`).
      references: likewise.

    Returns:
      2 + 2 * ORDERS numbers: the caption's length, the length of the reference nearest
      in length (the shorter of two), then for each order the n-grams that a reference
      has too, and all n-grams.
    """
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    counts = cook_test(caption, cook_refs(references), eff="closest")
    ngrams = zip(counts["correct"], counts["guess"], strict=True)
    return [counts["testlen"], counts["reflen"], *(n for pair in ngrams for n in pair)]


def bleu(sums: Float[Array, "... 10"], order: int) -> Any:
    """Compute BLEU in percent from sums of `bleu_counts` (Papineni et al. 2002).

    The geometric mean of the precisions up to this order, times exp(1 - r/c) where the
    captions' length c is below the references' length r.
    """
    length, nearest = sums[..., 0], sums[..., 1]
    correct = sums[..., 2 : 2 + 2 * order : 2]
    total = np.maximum(sums[..., 3 : 3 + 2 * order : 2], 1)
    precision = np.prod(correct / total, axis=-1) ** (1 / order)
    brevity = np.exp(np.minimum(1 - nearest / np.maximum(length, 1), 0))
    return 100 * precision * brevity
