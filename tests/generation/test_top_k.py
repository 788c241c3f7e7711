"""The two-stage `top_k` is `jax.lax.top_k`: values, places and the order of equals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.generation.top_k import BLOCK, top_k

NUMBERS = jax.random.normal(jax.random.key(0), (3, 40 * BLOCK + 7))


@pytest.mark.parametrize(
    "rows",
    [
        NUMBERS,
        jnp.round(NUMBERS),  # many are equal
        jnp.where(NUMBERS > 2, NUMBERS, -jnp.inf),  # fewer than asked for are finite
        jnp.zeros_like(NUMBERS),
        NUMBERS[:, : 40 * BLOCK],  # nothing to pad
        NUMBERS[:, : 3 * BLOCK],  # fewer blocks than asked for
    ],
    ids=["plain", "ties", "infinite", "same", "even", "few"],
)
@pytest.mark.parametrize("count", [1, 10])
def test_it_is_that_of_jax(rows, count):
    found = jax.jit(top_k, static_argnums=1)(rows, count)
    expected = jax.lax.top_k(rows, count)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_more_than_there_are():
    with pytest.raises(ValueError, match="the 9 largest of 8 numbers"):
        top_k(NUMBERS[:, :8], 9)
