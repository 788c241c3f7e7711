"""Weights and inputs that every contestant makes for itself: functions of a name.

Weights are named as the original names them. Needs numpy alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

STD = 0.02
TEMPERATURE = 0.07
DRAWN = 4_000_037  # numbers that are drawn; larger arrays repeat them (a prime)


def _random(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """The fp32 parameter `name`: small numbers, norms near one, the temperature."""
    if not shape:
        return np.full((), TEMPERATURE, np.float32)
    size = int(np.prod(shape))
    drawn = STD * _random(name).standard_normal(min(size, DRAWN), np.float32)
    array = np.resize(drawn, tuple(shape))
    scale = len(shape) == 1 and name.endswith("weight")
    return array + 1 if scale else array


def images(rows: int, *shape: int) -> np.ndarray:
    """fp32 features or normalised images [rows, *shape], and the same every time."""
    return _random("images").standard_normal((rows, *shape), np.float32)


def ids(
    name: str, rows: int, length: int, vocabulary: int, first: Sequence[int] = ()
) -> np.ndarray:
    """Token ids [rows, length] without special ones, `first` at the start."""
    found = _random(name).integers(10, vocabulary - 10, (rows, length))
    found[:, : len(first)] = first
    return found
