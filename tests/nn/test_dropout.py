"""Dropout: rate, scale, independence, and equal bits on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from blip2_jax.nn.dropout import dropout, keep_mask, split_key


def test_rate_and_scale():
    x = jnp.ones((400, 500))
    out = dropout(x, 0.1, jax.random.key(0))
    assert abs(float((out == 0).mean()) - 0.1) < 0.003
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.9], rtol=1e-6)


def test_masks_of_keys_rows_and_columns_are_independent():
    one, two = (keep_mask((512, 512), 0.5, jax.random.key(s)) for s in (0, 1))
    pairs = [(one, two), (one[1:], one[:-1]), (one[:, 1:], one[:, :-1]), (one, one.T)]
    for a, b in pairs:
        assert abs(float((a == b).mean()) - 0.5) < 0.01


def test_no_key_is_the_identity():
    x = jnp.ones(3)
    assert dropout(x, 0.5, None) is x
    assert split_key(None, 3) == [None] * 3


def test_gradient_has_the_mask_of_the_value():
    x, key = jnp.ones((64, 64)), jax.random.key(3)
    gradient = jax.grad(lambda x: dropout(x, 0.3, key).sum())(x)
    np.testing.assert_array_equal(gradient, dropout(x, 0.3, key))


def test_same_bits_on_a_mesh():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"))
    x, key = jnp.ones((8, 6)), jax.random.key(1)
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", "tensor")))
    sharded = jax.jit(lambda x: dropout(x, 0.5, key))(placed)
    np.testing.assert_array_equal(sharded, dropout(x, 0.5, key))


def test_rate_out_of_range():
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        dropout(jnp.ones(1), 1.0, jax.random.key(0))
