"""A stack of blocks: scanned and unrolled alike, with caches, keys and remat."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.models.stack import REMAT_POLICIES, Stack

L, D = 3, 4


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, shift, per_layer):
        y = jnp.tanh(nn.Dense(D, name="dense")(x)) + shift
        return (y, None) if per_layer is None else (y + per_layer, per_layer * 2)


class Tower(nn.Module):
    scan: bool
    remat: str = "none"

    def setup(self):
        self.stack = Stack(Block(parent=None), L, self.scan, self.remat)
        self.blocks = self.param("blocks", self.stack.init, jnp.zeros((1, D)), 0.0)

    def __call__(self, x, shift, per_layer=None):
        return self.stack(self.blocks, x, shift, per_layer=per_layer)


X = jnp.arange(2.0 * D).reshape(2, D) / 10


def test_parameters_have_a_layer_axis():
    params = Tower(True).init(jax.random.key(0), X, 0.1)["params"]
    assert params["blocks"]["dense"]["kernel"].shape == (L, D, D)
    assert not np.allclose(*params["blocks"]["dense"]["kernel"][:2])


@pytest.mark.parametrize("remat", list(REMAT_POLICIES))
def test_scan_equals_loop(remat):
    params = Tower(True).init(jax.random.key(0), X, 0.1)
    extra = jnp.arange(float(L))

    def run(scan):
        tower = Tower(scan, remat)
        loss = lambda p: (tower.apply(p, X, 0.1, extra)[0] ** 2).sum()
        return jax.value_and_grad(loss)(params), tower.apply(params, X, 0.1, extra)

    scanned, looped = run(True), run(False)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, scanned, looped)
    np.testing.assert_array_equal(scanned[1][1], extra * 2)


def test_weights_taken_apart_give_the_same():
    tower, extra = Tower(True), jnp.arange(float(L))
    params = tower.init(jax.random.key(0), X, 0.1)
    stack = Stack(Block(parent=None), L)
    weights = stack.weights_apart(params["params"]["blocks"])
    assert len(weights) == L
    x, outputs = stack(weights, X, 0.1, per_layer=stack.apart(extra))
    expected = tower.apply(params, X, 0.1, extra)
    np.testing.assert_allclose(x, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(outputs, expected[1])


def test_unknown_policy_lists_the_known():
    with pytest.raises(ValueError, match="full"):
        Tower(True, "most").init(jax.random.key(0), X, 0.1)
