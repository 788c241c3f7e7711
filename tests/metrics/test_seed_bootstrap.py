"""Means over seeds, and differences paired by seed and by example."""

import numpy as np
import pytest

from blip2_jax.metrics.bootstrap import Statistic, mean, ratio
from blip2_jax.metrics.seed_bootstrap import mean_over_seeds, paired_difference


def accuracy(values):
    values = np.asarray(values, np.float64)
    ids = [str(number) for number in range(len(values))]
    return Statistic("question", ids, mean(values, np.ones(len(values))), ratio)


def answers(rng, share, count=400):
    return 100.0 * (rng.random(count) < share)


def test_one_seed_has_the_interval_of_its_examples():
    values = np.random.default_rng(1).normal(50, 10, 400)
    estimate = mean_over_seeds([accuracy(values)])
    error = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.interval[0] == pytest.approx(values.mean() - error, abs=0.2)
    assert estimate.interval[1] == pytest.approx(values.mean() + error, abs=0.2)


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    base = answers(rng, 0.5)
    alike = mean_over_seeds([accuracy(base)] * 3)
    apart = mean_over_seeds([accuracy(base), accuracy(base + 10), accuracy(base - 10)])
    assert alike.value == pytest.approx(apart.value)
    width = lambda each: each.interval[1] - each.interval[0]
    assert width(apart) > 1.5 * width(alike)
    assert apart.per_seed == pytest.approx([base.mean() + d for d in (0, 10, -10)])


def test_a_shared_difficulty_does_not_widen_a_difference():
    """Every seed and every example is hard or easy for both sides."""
    rng = np.random.default_rng(0)
    shared = [rng.normal(50 + 10 * seed, 20, 300) for seed in range(3)]
    first = [accuracy(values) for values in shared]
    second = [accuracy(values + 2) for values in shared]
    estimate = paired_difference(first, second)
    assert estimate.value == pytest.approx(2)
    assert estimate.interval == pytest.approx((2, 2))
    assert estimate.per_seed == pytest.approx((2, 2, 2))
    assert estimate.text(signed=True) == "+2.0 [+2.0, +2.0]"


def test_a_difference_that_changes_its_sign_with_the_seed_includes_zero():
    rng = np.random.default_rng(0)
    base = answers(rng, 0.5)
    first = [accuracy(base)] * 3
    estimate = paired_difference(first, [accuracy(base + d) for d in (8, -4, 1)])
    assert estimate.interval[0] < 0 < estimate.interval[1]


def test_only_the_same_examples_and_seeds_are_compared():
    with pytest.raises(ValueError, match="3 and of 4 questions"):
        mean_over_seeds([accuracy([1, 2, 3]), accuracy([1, 2, 3, 4])])
    with pytest.raises(ValueError, match="2 seeds on one side, 1 on the other"):
        paired_difference([accuracy([1]), accuracy([2])], [accuracy([1])])
