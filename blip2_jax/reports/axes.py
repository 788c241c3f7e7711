"""Axes of charts: where values stand, and the ticks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, of values or of their logarithms.

    Attributes:
      low: value at its beginning.
      high: value at its end.
      ticks: values to mark, ascending.
      log: logarithmic.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Return where a value stands: 0 at the beginning of the axis, 1 at its end."""
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            return (math.log10(value) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(values: Sequence[float], count: int = 4) -> Axis:
    """Make an axis that holds zero and all values.

    Args:
      values: finite numbers.
      count: number of intervals between ticks, about.
    """
    low, high = min([0.0, *values]), max([0.0, *values])
    if low == high:
        high = low + 1.0
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(step * number for number in range(first, last + 1))
    return Axis(min(low, ticks[0]), max(high, ticks[-1]), ticks)


def step_axis(values: Sequence[float], count: int = 4) -> Axis:
    """Make an axis from zero that ends at the last step."""
    axis = linear_axis(values, count)
    high = max([0.0, *values]) or axis.high
    return Axis(0.0, high, tuple(tick for tick in axis.ticks if 0 <= tick <= high))


def log_axis(values: Sequence[float]) -> Axis:
    """Make a logarithmic axis; ticks are powers of ten, or also 2 and 5 times these.

    Args:
      values: positive, finite numbers; at least one.
    """
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, len(powers) // 5)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    marks = sorted(
        factor * 10.0**power for power in powers[::every] for factor in factors
    )
    below = [mark for mark in marks if mark <= low * (1 + 1e-9)]
    above = [mark for mark in marks if mark >= high * (1 - 1e-9)]
    start = below[-1] if below else low
    end = above[0] if above else high
    if start == end:
        start, end = low / 2, high * 2
    return Axis(start, end, tuple(m for m in marks if start <= m <= end), log=True)


def format_tick(value: float) -> str:
    """Format a number of an axis in few characters, e.g. 20k or 2e-5."""
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.4g}{prefix}"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def _round_step(size: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least a size."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= size * (1 - 1e-9))
