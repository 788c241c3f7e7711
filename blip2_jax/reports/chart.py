"""Line charts and histograms as SVG."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from blip2_jax.reports.markup import Html

_COLORS = ("#2563eb", "#dc2626", "#16a34a", "#9333ea")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 340, 200, 40, 24


def line_chart(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> Html:
    """Draw a line chart as an <svg> element; both axes begin at zero.

    Args:
      title: of the chart.
      series: by name, the points (step, value) of a line; at most four lines. The names
        stand at the right border, above or below the ends of the lines.
    """
    points = [point for line in series.values() for point in line]
    right = max([x for x, _ in points], default=1.0)
    top = 1.05 * max([y for _, y in points], default=1.0)
    ground = _HEIGHT - _BOTTOM
    ends = [line[-1][1] for line in series.values()]
    ends_high = 2 * min(ends, default=0.0) > top
    first_name_y = ground - 15 * len(ends) + 7 if ends_high else 14

    def coordinates(x: float, y: float) -> str:
        across = _LEFT + x / right * (_WIDTH - _LEFT - 8)
        return f"{across:.1f},{ground * (1 - y / top):.1f}"

    parts = [
        f'<polyline fill="none" stroke="{color}" stroke-width="1.6" points="'
        + " ".join(coordinates(x, y) for x, y in line)
        + f'"/><text x="{_WIDTH - 8}" y="{first_name_y + 15 * number}" fill="{color}" '
        f'text-anchor="end">{html.escape(name)} {line[-1][1]:.2f}</text>'
        for number, (color, (name, line)) in enumerate(
            zip(_COLORS, series.items(), strict=False)
        )
    ]
    labels = (
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 8}" text-anchor="end">'
        f"{right:.0f} steps</text>"
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}" font-weight="bold">'
        f"{html.escape(title)}</text>"
    )
    return _svg([*parts, _axes(f"{top:.1f}"), labels])


def histogram(
    title: str, series: Mapping[str, Mapping[int, int]], bin_width: float
) -> Html:
    """Draw histograms over each other as an <svg> element.

    The height of a bin is its share of the values of its series.

    Args:
      title: of the values.
      series: by name, the number of values by bin; bin n begins at n times `bin_width`.
        At most four series; empty ones are left out.
      bin_width: width of a bin.
    """
    drawn = {name: counts for name, counts in series.items() if sum(counts.values())}
    bins = [bin_ for counts in drawn.values() for bin_ in counts]
    first, end = min(bins, default=0), max(bins, default=0) + 1
    ground, highest = _HEIGHT - _BOTTOM, 6 + 15 * len(drawn)  # below the names
    top = max(
        (max(counts.values()) / sum(counts.values()) for counts in drawn.values()),
        default=1.0,
    )
    parts = []
    for number, (color, (name, counts)) in enumerate(
        zip(_COLORS, drawn.items(), strict=False)
    ):
        path = f"M{_LEFT} {ground}"
        for bin_ in range(first, end):
            share = counts.get(bin_, 0) / sum(counts.values())
            height = share / top * (ground - highest)
            right = _LEFT + (bin_ + 1 - first) / (end - first) * (_WIDTH - _LEFT - 8)
            path += f"V{ground - height:.1f}H{right:.1f}"
        parts.append(
            f'<path d="{path}V{ground}Z" fill="{color}" fill-opacity="0.25" '
            f'stroke="{color}"/><text x="{_WIDTH - 8}" y="{14 + 15 * number}" '
            f'fill="{color}" text-anchor="end">{html.escape(name)} '
            f"{sum(counts.values())}</text>"
        )
    labels = (
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}">{first * bin_width:.2f}</text>'
        f'<text x="{(_LEFT + _WIDTH - 8) / 2}" y="{_HEIGHT - 8}" font-weight="bold" '
        f'text-anchor="middle">{html.escape(title)}</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 8}" text-anchor="end">'
        f"{end * bin_width:.2f}</text>"
    )
    return _svg([*parts, _axes(f"{100 * top:.0f} %", highest), labels])


def _axes(top: str, top_y: int = 4) -> str:
    """Draw both axes, with the label of the highest value at its height."""
    ground = _HEIGHT - _BOTTOM
    return (
        f'<path d="M{_LEFT} 0V{ground}H{_WIDTH - 8}" stroke="#99a" fill="none"/>'
        f'<text x="{_LEFT - 4}" y="{top_y + 8}" text-anchor="end">{top}</text>'
        f'<text x="{_LEFT - 4}" y="{ground}" text-anchor="end">0</text>'
    )


def _svg(parts: Sequence[str]) -> Html:
    return Html(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%" '
        f'font-family="system-ui" font-size="11">{"".join(parts)}</svg>'
    )
