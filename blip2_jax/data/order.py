"""Order and randomness of the data as pure functions of (seed, position).

The order of an epoch is a Feistel network over the next power of four, applied until
the result lies inside the range (cycle walking). This bijection needs no array of
indices, so that a run restarts at any position of a hundred million images at no cost.
"""

from __future__ import annotations

import enum

import numpy as np

_ROUNDS = 6
_MASK64 = (1 << 64) - 1


class RngPurpose(enum.IntEnum):
    """Purpose of a position's random numbers; each has its own stream."""

    TEXT = 0
    IMAGE = 1


def position_rng(seed: int, position: int, purpose: RngPurpose) -> np.random.Generator:
    """Return the random generator of a position and purpose (about 20 us)."""
    key = np.array([seed & _MASK64, position], np.uint64)
    counter = np.array([0, 0, 0, purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def shuffled_index(ordinal: int, count: int, *, seed: int, source: int = 0) -> int:
    """Return the element at `ordinal` of a source's endless sequence of epochs.

    Args:
      ordinal: position in the sequence; `ordinal // count` is the epoch.
      count: number of elements of the source.
      seed: seed of the order.
      source: index of the source; each source has its own order.

    Returns:
      An index in 0 .. count - 1; each occurs once per epoch.
    """
    epoch, offset = divmod(ordinal, count)
    key = _mix(_mix(_mix(seed & _MASK64) ^ source) ^ epoch)
    half = (max(count - 1, 1).bit_length() + 1) // 2
    while True:
        offset = _feistel(offset, half, key)
        if offset < count:
            return offset


def _feistel(value: int, half: int, key: int) -> int:
    """Permute 0 .. 4^half - 1."""
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (_mix(key ^ (right << 8) ^ number) & mask)
    return left << half | right


def _mix(value: int) -> int:
    """Hash 64 bits (SplitMix64's finaliser)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    return value ^ value >> 31
