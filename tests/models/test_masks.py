"""Every mask against its drawing: two queries, three text tokens, the last padding."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.models import masks

MASK = jnp.array([[1, 1, 0], [1, 1, 1]], bool)


def drawing(function):
    """The rows of digits in the function's docstring."""
    lines = [line.strip().split() for line in inspect.getdoc(function).splitlines()]
    rows = [line for line in lines if line and set(line) <= {"0", "1"}]
    return np.array(rows, int).astype(bool)


@pytest.mark.parametrize("build", [masks.unimodal, masks.causal_multimodal])
def test_square_masks(build):
    np.testing.assert_array_equal(build(2, MASK)[0, 0], drawing(build))


def test_causal():
    np.testing.assert_array_equal(masks.causal(MASK)[0, 0], drawing(masks.causal))


def test_bidirectional_and_padding():
    row = masks.bidirectional(2, MASK)
    np.testing.assert_array_equal(row[0, 0], drawing(masks.bidirectional))
    np.testing.assert_array_equal(masks.padding(MASK)[:, 0, 0], MASK)
