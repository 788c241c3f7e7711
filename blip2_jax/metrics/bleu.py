"""BLEU as a function of sums over captions, so that captions can be drawn again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

ORDERS = 4
# Of a caption: its length, that of the reference nearest in length, then for each
# order the n-grams that a reference has too, and all n-grams.
COUNTS = 2 + 2 * ORDERS


def bleu_counts(caption: str, references: Sequence[str]) -> list[int]:
    """What a caption adds to BLEU's sums: `COUNTS` numbers.

    Args:
      caption, references: words between single spaces (see `captioning`).
    """
    words = caption.split()
    lengths = [len(reference.split()) for reference in references]
    nearest = min(lengths, key=lambda length: (abs(length - len(words)), length))
    counts = [len(words), nearest]
    for order in range(1, ORDERS + 1):
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= _ngrams(reference.split(), order)
        own = _ngrams(words, order)
        counts += [(own & most).total(), own.total()]
    return counts


def bleu(sums: Float[Array, "... counts"], order: int) -> Float[Array, "..."]:
    """BLEU-`order` in percent from sums of `bleu_counts` (Papineni et al. 2002).

    The geometric mean of the precisions up to this order, times exp(1 - r/c) where
    the captions' length c is below the references' r.
    """
    length, nearest = sums[..., 0], sums[..., 1]
    right = sums[..., 2 : 2 + 2 * order : 2]
    every = np.maximum(sums[..., 3 : 3 + 2 * order : 2], 1)
    mean = np.prod(right / every, axis=-1) ** (1 / order)
    brevity = np.exp(np.minimum(1 - nearest / np.maximum(length, 1), 0))
    return 100 * mean * brevity


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))
