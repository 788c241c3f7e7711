"""Axes, charts, smoothing and thinning."""

import math

import pytest

from blip2_jax.reports.axes import format_tick, linear_axis, log_axis, step_axis
from blip2_jax.reports.chart import as_file, line_chart
from blip2_jax.reports.run_charts import MAX_POINTS, smooth, thin


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([3.7], (0, 1, 2, 3, 4)),
        ([-1, 1], (-1, -0.5, 0, 0.5, 1)),
        ([0.0011], (0, 0.0005, 0.001, 0.0015)),
        ([0.0], (0, 0.5, 1)),
        ([], (0, 0.5, 1)),
    ],
)
def test_linear_ticks_are_round_and_hold_all_values(values, ticks):
    axis = linear_axis(values)
    assert axis.ticks == pytest.approx(ticks)
    assert all(0 <= axis.share(value) <= 1 for value in values)


@pytest.mark.parametrize("values", [[0.2, 5.0], [3.0], [1e-9, 1e6], [10.0, 10.0]])
def test_log_axes_hold_all_values(values):
    axis = log_axis(values)
    assert axis.low < axis.high and 1 <= len(axis.ticks) <= 12
    assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)
    middle = math.sqrt(axis.low * axis.high)
    assert axis.share(middle) == pytest.approx(0.5)


def test_steps_end_at_the_last_one():
    axis = step_axis([2, 730])
    assert axis.high == 730 and axis.ticks == (0, 200, 400, 600)


def test_numbers_of_axes_are_short():
    numbers = (0, 0.5, 250, 20_000, 1_500_000, 2e-5, 2.5e-7, -4000)
    texts = [format_tick(number) for number in numbers]
    assert texts == ["0", "0.5", "250", "20k", "1.5M", "2e-5", "2.5e-7", "-4k"]


def test_a_chart_without_points_and_with_a_reference():
    chart = line_chart("t", {"a": []}, reference=("<chance>", 0.5))
    assert "&lt;chance&gt; 0.5" in chart and "nan" not in chart
    file = as_file(line_chart("t", {"a": [(1, 1.0)]}))
    assert file.startswith("<svg xmlns=") and "<style>@media" in file


def test_smoothing_keeps_constants_and_the_mean_of_noise():
    assert smooth([(n, 2.0) for n in range(99)])[-1] == pytest.approx((98, 2.0))
    noisy = [(n, 3.0 + (-1) ** n) for n in range(1000)]
    assert smooth(noisy)[-1][1] == pytest.approx(3.0, abs=0.05)


def test_thinning_keeps_ends_and_extremes():
    line = [(n, math.sin(n)) for n in range(5000)]
    line[1234] = (1234, 99.0)
    thinned = thin(line)
    assert len(thinned) <= MAX_POINTS
    assert {line[0], line[1234], line[-1]} <= set(thinned)
    assert thinned == sorted(thinned)
    assert thin(line[:MAX_POINTS]) == line[:MAX_POINTS]
