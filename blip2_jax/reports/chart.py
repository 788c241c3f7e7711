"""Line charts and histograms as SVG.

Lines have a class (c0 to c5), to which the style sheet of the pages gives a colour that
suits light and dark pages, and the colour for files of their own as an attribute.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from blip2_jax.reports.axes import (
    Axis,
    format_tick,
    linear_axis,
    log_axis,
    step_axis,
)
from blip2_jax.reports.markup import Html

Points = Sequence[tuple[float, float]]

COLORS = ("#2563eb", "#c2410c", "#15803d", "#9333ea", "#0e7490", "#be185d")
_DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "4 4", "1 4")  # tell lines apart in print
_WIDTH, _GROUND, _LEFT, _TOP, _RIGHT = 340, 178, 42, 24, 10
_LEGEND_ROW = 15
_MAX_NAME = 40  # characters of a name in the legend
_DOTS_UP_TO = 24  # points of a line that are marked each


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    faint: Mapping[str, Points] | None = None,
    log: bool = False,
    reference: tuple[str, float] | None = None,
) -> Html:
    """Draw a line chart as an <svg> element.

    Args:
      title: of the chart.
      series: by name, the points (step, value) of a line. The legend below the chart
        shows each line's last value.
      faint: by name, points that are drawn faintly behind the line of that name, e.g.
        values before smoothing.
      log: the values have a logarithmic axis; all must be positive. Else both axes
        begin at zero.
      reference: name and value of a horizontal line.
    """
    faint = faint or {}
    points = [p for line in (*series.values(), *faint.values()) for p in line]
    values = [y for _, y in points] + ([reference[1]] if reference else [])
    across = step_axis([x for x, _ in points])
    up = log_axis(values) if log and values else linear_axis(values)
    parts = [_grid(across, up, " steps")]
    for number, (name, line) in enumerate(series.items()):
        if behind := faint.get(name):
            parts.append(_polyline(number, behind, across, up, faint=True))
        parts.append(_polyline(number, line, across, up))
    if reference:
        y = f"{_y(up, reference[1]):.1f}"
        parts.append(
            f'<path class="faint" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="#667" '
            'stroke-dasharray="3 3"/>'
        )
    names = [
        (name, format_tick(line[-1][1]) if line else "")
        for name, line in series.items()
    ]
    legend, height = _legend(names, reference)
    return _svg(title, [*parts, legend], height)


def as_file(chart: Html) -> str:
    """Return a chart as an SVG file, whose texts suit light and dark backgrounds."""
    start = '<svg xmlns="http://www.w3.org/2000/svg" '
    style = "<style>@media (prefers-color-scheme: dark){text{fill:#d7dae3}}</style>"
    return chart.replace("<svg ", start, 1).replace(">", f">{style}", 1)


def histogram(
    title: str, series: Mapping[str, Mapping[int, int]], bin_width: float
) -> Html:
    """Draw histograms over each other as an <svg> element.

    The height of a bin is its share of the values of its series.

    Args:
      title: of the values.
      series: by name, the number of values by bin; bin n begins at n times `bin_width`.
        Empty ones are left out.
      bin_width: width of a bin.
    """
    drawn = {name: counts for name, counts in series.items() if sum(counts.values())}
    bins = [bin_ for counts in drawn.values() for bin_ in counts]
    first, end = min(bins, default=0), max(bins, default=0) + 1
    shares = {
        name: {bin_: count / sum(counts.values()) for bin_, count in counts.items()}
        for name, counts in drawn.items()
    }
    up = linear_axis([100 * s for bins_ in shares.values() for s in bins_.values()])
    across = Axis(first * bin_width, end * bin_width, ())
    parts = [_grid(across, up, "", " %")]
    for number, by_bin in enumerate(shares.values()):
        path = f"M{_LEFT} {_GROUND}"
        for bin_ in range(first, end):
            y, right = _y(up, 100 * by_bin.get(bin_, 0.0)), (bin_ + 1) * bin_width
            path += f"V{y:.1f}H{_x(across, right):.1f}"
        parts.append(
            f'<path class="c{number % len(COLORS)}" color="{_color(number)}" '
            f'd="{path}V{_GROUND}Z" fill="currentColor" fill-opacity="0.22" '
            f'stroke="currentColor"{_dash(number)}/>'
        )
    ends = (
        f'<text class="faint" x="{_LEFT}" y="{_GROUND + 13}">'
        f"{first * bin_width:.2f}</text>"
        f'<text class="faint" x="{_WIDTH - _RIGHT}" y="{_GROUND + 13}" '
        f'text-anchor="end">{end * bin_width:.2f}</text>'
    )
    names = [(name, str(sum(counts.values()))) for name, counts in drawn.items()]
    legend, height = _legend(names)
    return _svg(title, [*parts, ends, legend], height)


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _GROUND - axis.share(value) * (_GROUND - _TOP)


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _dash(number: int) -> str:
    dash = _DASHES[number % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _polyline(
    number: int, line: Points, across: Axis, up: Axis, faint: bool = False
) -> str:
    """Draw a line; its few points are marked each, so that a single one is seen."""
    places = [(_x(across, x), _y(up, y)) for x, y in line]
    look = 'stroke-opacity="0.3"' if faint else f'stroke-width="1.7"{_dash(number)}'
    drawn = (
        f'<polyline fill="none" stroke="currentColor" {look} points="'
        + " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        + '"/>'
    )
    if not faint and len(places) <= _DOTS_UP_TO:
        drawn += "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="currentColor"/>'
            for x, y in places
        )
    kind = f'class="c{number % len(COLORS)}" color="{_color(number)}"'
    return f"<g {kind}>{drawn}</g>"


def _grid(across: Axis, up: Axis, last_unit: str, unit: str = "") -> str:
    """Draw horizontal lines with the values of both axes; the last step has a unit."""
    right = _WIDTH - _RIGHT
    parts = []
    for tick in up.ticks:
        y = f"{_y(up, tick):.1f}"
        parts.append(
            f'<path class="grid" d="M{_LEFT} {y}H{right}" stroke="#d9dbe6"/>'
            f'<text class="faint" x="{_LEFT - 4}" y="{float(y) + 3.5:.1f}" '
            f'text-anchor="end">{format_tick(tick)}{unit}</text>'
        )
    for tick in across.ticks:
        x = _x(across, tick)
        if right - x < 60 and tick != across.high:  # room for the last step
            continue
        last = tick == across.high
        parts.append(_step_label(x, tick, last_unit if last else "", last))
    if across.ticks and across.ticks[-1] != across.high:
        parts.append(_step_label(right, across.high, last_unit, True))
    return "".join(parts)


def _step_label(x: float, value: float, unit: str, last: bool) -> str:
    anchor = "end" if last else "middle"
    return (
        f'<text class="faint" x="{x:.1f}" y="{_GROUND + 13}" text-anchor="{anchor}">'
        f"{format_tick(value)}{unit}</text>"
    )


def _legend(
    names: Sequence[tuple[str, str]], reference: tuple[str, float] | None = None
) -> tuple[str, int]:
    """Draw the names and values of the lines; return them and the chart's height.

    Two short names share a row.
    """
    entries = [
        (_shorten(name), value, number) for number, (name, value) in enumerate(names)
    ]
    per_row = 2 if all(len(name) + len(value) < 21 for name, value, _ in entries) else 1
    parts = []
    first_y = _GROUND + 31
    for index, (name, value, number) in enumerate(entries):
        x = _LEFT + index % per_row * (_WIDTH - _LEFT) // 2
        y = first_y + index // per_row * _LEGEND_ROW
        parts.append(
            f'<path class="c{number % len(COLORS)}" color="{_color(number)}" '
            f'd="M{x} {y - 4}h20" stroke="currentColor" stroke-width="2.4"'
            f"{_dash(number)}/>"
            f'<text x="{x + 25}" y="{y}">{html.escape(name)} '
            f'<tspan font-weight="600">{value}</tspan></text>'
        )
    rows = -(-len(entries) // per_row)
    if reference:
        y = first_y + rows * _LEGEND_ROW
        parts.append(
            f'<path class="grid" d="M{_LEFT} {y - 4}h20" stroke="#667" '
            f'stroke-dasharray="3 3"/><text class="faint" x="{_LEFT + 25}" y="{y}">'
            f"{html.escape(_shorten(reference[0]))} {format_tick(reference[1])}</text>"
        )
        rows += 1
    return "".join(parts), first_y + (rows - 1) * _LEGEND_ROW + 8


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}"


def _svg(title: str, parts: Sequence[str], height: int) -> Html:
    label = html.escape(title)
    return Html(
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="100%" role="img" '
        f'aria-label="{label}" font-family="system-ui, sans-serif" font-size="11">'
        f'<text x="{_LEFT}" y="12" font-weight="bold">{label}</text>'
        f"{''.join(parts)}</svg>"
    )
