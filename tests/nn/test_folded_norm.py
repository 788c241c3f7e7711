"""The folded layer norm equals a layer norm and needs one matmul fewer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.nn.folded_norm import FoldedDense, FoldedLayerNorm
from blip2_jax.nn.layers import dense, layer_norm, normal
from blip2_jax.perf import dot_count

B, P, D, E = 2, 5, 12, 8
X = 3 + 2 * jax.random.normal(jax.random.key(0), (B, P, D))


class Folded(nn.Module):
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.norm = FoldedLayerNorm(D, 1e-5, self.dtype)
        self.dense = FoldedDense(E, self.dtype, normal())

    def __call__(self, x):
        normed = self.norm(x)
        return self.dense(normed), normed.applied()


class Plain(nn.Module):
    def setup(self):
        self.norm = layer_norm(1e-5, jnp.float32)
        self.dense = dense(E, jnp.float32)

    def __call__(self, x):
        normed = self.norm(x)
        return self.dense(normed), normed


def loss(params, x, module):
    return jnp.sin(module.apply({"params": params}, x)[0]).sum()


@pytest.fixture(scope="module")
def params():
    """Draw random parameters, one scale among them zero."""
    fresh = Plain().init(jax.random.key(1), X)["params"]
    shapes = jax.eval_shape(Folded().init, jax.random.key(1), X)["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, shapes)
    keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(fresh))))
    drawn = jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape), fresh)
    drawn["norm"]["scale"] = drawn["norm"]["scale"].at[3].set(0)
    return drawn


def test_values_equal_layer_norm_and_dense(params):
    for actual, expected in zip(
        Folded().apply({"params": params}, X),
        Plain().apply({"params": params}, X),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_near(params):
    actual, normed = Folded(jnp.bfloat16).apply({"params": params}, X)
    expected, _ = Plain().apply({"params": params}, X)
    assert actual.dtype == normed.dtype == jnp.bfloat16
    np.testing.assert_allclose(actual.astype(jnp.float32), expected, atol=0.1)


def test_gradients_equal_layer_norm_and_dense(params):
    grads = jax.grad(loss, argnums=(0, 1))
    actual, expected = grads(params, X, Folded()), grads(params, X, Plain())
    for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_two_matmuls_instead_of_three_behind_a_frozen_input(params):
    def flops(module):
        step = lambda params, x: jax.value_and_grad(loss)(params, x, module)
        return sum(dot.flops for dot in dot_count.count_dots(step, params, X))

    one = 2 * B * P * D * E
    assert flops(Folded()) == 2 * one
    assert flops(Plain()) == 3 * one
