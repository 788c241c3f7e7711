"""Weights and inputs that every contestant generates from their names.

Weights have the original's names. Needs only numpy.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

STD = 0.02
TEMPERATURE = 0.07
DRAWN = 4_000_037  # random numbers; larger arrays repeat them (a prime)


def _random(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """Return the fp32 parameter `name`: small, but norms near one."""
    if not shape:
        return np.full((), TEMPERATURE, np.float32)
    size = int(np.prod(shape))
    drawn = STD * _random(name).standard_normal(min(size, DRAWN), np.float32)
    array = np.resize(drawn, tuple(shape))
    scale = len(shape) == 1 and name.endswith("weight")
    return array + 1 if scale else array


def images(rows: int, *shape: int) -> np.ndarray:
    """Return the same fp32 features or normalised images [rows, *shape] every time."""
    return _random("images").standard_normal((rows, *shape), np.float32)


def ids(
    name: str, rows: int, length: int, vocabulary: int, first: Sequence[int] = ()
) -> np.ndarray:
    """Return token ids [rows, length] without special tokens, starting with `first`."""
    array_ids = _random(name).integers(10, vocabulary - 10, (rows, length))
    array_ids[:, : len(first)] = first
    return array_ids
