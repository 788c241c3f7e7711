"""Intervals of scores, and of differences on the same examples."""

import numpy as np
import pytest

from blip2_jax.metrics.bootstrap import Statistic, differences, intervals, mean, ratio


def accuracy(values, unit="question"):
    values = np.asarray(values, np.float64)
    ids = [str(number) for number in range(len(values))]
    return Statistic(unit, ids, mean(values, np.ones(len(values))), ratio)


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(1).normal(50, 10, 400)
    low, high = intervals({"a": accuracy(values)}, samples=4000)["a"]
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=0.12)
    assert high == pytest.approx(values.mean() + error, abs=0.12)


def test_equal_seeds_draw_equally_and_a_constant_has_no_width():
    drawn = {"a": accuracy(np.arange(50)), "b": accuracy(np.full(50, 7.0))}
    assert intervals(drawn, seed=3) == intervals(drawn, seed=3)
    assert intervals(drawn, seed=3)["a"] != intervals(drawn, seed=4)["a"]
    assert intervals(drawn)["b"] == (7, 7)


def test_a_mean_over_some_examples_counts_those_alone():
    counted = np.array([1.0, 0, 1, 0])
    one = Statistic("question", list("abcd"), mean(np.arange(4.0), counted), ratio)
    assert one.value() == 1
    low, high = intervals({"one": one})["one"]  # draws without a and c are no numbers
    assert (low, high) == (0, 2)


def test_paired_differences_are_narrower_than_their_scores():
    rng = np.random.default_rng(0)
    first = rng.normal(50, 20, 300)
    second = first + rng.normal(1, 1, 300)
    difference = differences({"a": accuracy(first)}, {"a": accuracy(second)})["a"]
    assert difference.value == pytest.approx(np.mean(second - first))
    assert (
        0.8 < difference.interval[0] < difference.value < difference.interval[1] < 1.2
    )
    assert difference.crossing == 0
    low, high = intervals({"a": accuracy(first)})["a"]
    assert high - low > 10 * (difference.interval[1] - difference.interval[0])
    same = differences({"a": accuracy(first)}, {"a": accuracy(first)})["a"]
    assert same == (0, (0, 0), 1)


def test_other_examples_are_not_compared():
    left, right = accuracy(np.arange(4)), accuracy(np.arange(5))
    with pytest.raises(ValueError, match="on 4 and on 5 questions that are not"):
        differences({"a": left}, {"a": right})
    assert differences({"a": left}, {"b": right}) == {}
