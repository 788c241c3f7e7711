"""Stacks: scan and loop agree; rematerialisation policies; unstacked weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from blip2_jax.nn.layers import Mlp, dense
from blip2_jax.nn.stack import REMAT_POLICIES, Stack
from blip2_jax.parallel.sharding import make_mesh, tree_shardings
from blip2_jax.perf.dot_count import count_dots
from blip2_jax.planning.collectives import collectives

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


def test_policies_recompute_matmuls():
    """Policy "full" recomputes all, "dots" only batched matmuls, as in attention."""

    class Matmuls(nn.Module):
        @nn.compact
        def __call__(self, x, per_layer):
            y = dense(D, jnp.float32)(x)
            y = jnp.tanh(y @ jnp.tanh(y).mT @ y)
            return Mlp(2 * D, D, "gelu", jnp.float32)(y), None

    def flops(remat):
        stack = Stack(Matmuls(parent=None), L, remat=remat)
        x = jnp.ones((2, 3, D))
        params = stack.init(jax.random.key(0), x)
        loss = lambda params: jnp.sin(stack(params, x)[0]).sum()
        return sum(dot.flops for dot in count_dots(jax.grad(loss), params))

    rows, batched = 2 * 3 * D * 2, 2 * (2 * 3 * 3 * D * 2)
    assert flops("dots") - flops("none") == L * batched
    # The output of a block's last matmul is not needed by the backward pass.
    assert flops("full") - flops("dots") == L * rows * (D + 2 * D)


def test_unstacked_weights_give_the_same_result():
    tower, extra = Tower(True), jnp.arange(float(L))
    params = tower.init(jax.random.key(0), X, 0.1)
    stack = Stack(Block(parent=None), L)
    weights = stack.unstacked_weights(params["params"]["blocks"])
    assert len(weights) == L
    x, outputs = stack(weights, X, 0.1, per_layer=stack.unstack(extra))
    expected = tower.apply(params, X, 0.1, extra)
    np.testing.assert_allclose(x, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(outputs, expected[1])


def test_unknown_policy_lists_the_known():
    with pytest.raises(ValueError, match="full"):
        Tower(True, "most").init(jax.random.key(0), X, 0.1)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_sharded_weights_are_gathered_layer_by_layer(remat):
    """In both passes; the batch, sharded over the same axis, is not gathered."""

    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x, per_layer):
            return jnp.tanh(nn.Dense(16, name="dense", use_bias=False)(x)), None

    stack = Stack(Wide(parent=None), L, remat=remat)
    x = jax.random.normal(jax.random.key(1), (8, 16))
    params = stack.init(jax.random.key(0), x)
    mesh = make_mesh(fsdp=8)
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    stored = tree_shardings({"blocks": params}, mesh)["blocks"]
    gradient = jax.grad(lambda x, p: (stack(p, x)[0] ** 2).sum())
    expected = jax.jit(gradient)(x, params)
    with jax.set_mesh(mesh):
        compiled = (
            jax.jit(gradient, in_shardings=(rows, stored), out_shardings=rows)
            .lower(x, params)
            .compile()
        )
        result = compiled(jax.device_put(x, rows), jax.device_put(params, stored))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    sent = collectives(compiled.as_text(), 8)
    assert {each.kind for each in sent} == {"all-gather"}
    assert [each.bytes for each in sent] == [16 * 16 * 4] * 2
    assert [each.times for each in sent] == [L, L]
