"""Attention masks equal the drawings in their docstrings."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.nn import masks

MASK = jnp.array([[1, 1, 0], [1, 1, 1]], bool)


def drawing(function):
    """Return the rows of digits in the function's docstring as a mask."""
    lines = [line.strip().split() for line in inspect.getdoc(function).splitlines()]
    rows = [line for line in lines if line and set(line) <= {"0", "1"}]
    return np.array(rows, int).astype(bool)


@pytest.mark.parametrize("build", [masks.padding, masks.causal])
def test_text_alone(build):
    np.testing.assert_array_equal(build(MASK)[0, 0], drawing(build))


@pytest.mark.parametrize("build", [masks.causal_multimodal, masks.bidirectional])
def test_beside_queries(build):
    np.testing.assert_array_equal(build(2, MASK)[0, 0], drawing(build))
    unpadded = build(2, jnp.ones_like(MASK))  # only padding makes texts differ
    np.testing.assert_array_equal(build(2, MASK)[1], unpadded[0])
