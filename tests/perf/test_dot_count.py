"""Matmul counts: loops, dead code, scopes, forward and backward pass."""

import jax
import jax.numpy as jnp
import pytest

from blip2_jax.nn.tpu_attention import tpu_attention
from blip2_jax.parallel.sharding import make_mesh
from blip2_jax.perf import dot_count

X = jax.ShapeDtypeStruct((3, 4), jnp.float32)
W = jax.ShapeDtypeStruct((4, 4), jnp.float32)
ONE = 2 * 3 * 4 * 4


def total(function, *args):
    return sum(dot.flops for dot in dot_count.count_dots(function, *args))


def test_one_matmul():
    (dot,) = dot_count.count_dots(lambda x, w: x @ w, X, W)
    assert dot.flops == ONE
    assert dot.shapes == ((3, 4), (4, 4))
    assert not dot.backward


def test_unused_matmuls_do_not_count():
    def function(x, w):
        _ = x @ w
        return jax.jit(lambda x: (x @ w, x))(x)[1]

    assert total(function, X, W) == 0


@pytest.mark.parametrize("turns", [1, 5])
def test_a_loop_counts_its_iterations(turns):
    def function(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=turns)[0]

    assert total(function, X, W) == turns * ONE


def test_a_loop_of_unknown_length_is_refused():
    def function(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 0, lambda x: x @ w, x)

    with pytest.raises(NotImplementedError, match="inside while"):
        dot_count.count_dots(function, X, W)


def test_a_convolution_counts_its_window():
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((2, 2, 3, 5), jnp.float32)
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert total(convolve, image, kernel) == 2 * (4 * 4 * 5) * (2 * 2 * 3)


def test_backward_matmuls_and_scopes():
    def loss(x, w):
        with jax.named_scope("first"):
            x = x @ w
        with jax.named_scope("second"):
            return (x @ w).sum()

    dots = dot_count.count_dots(jax.grad(loss, argnums=(0, 1)), X, W)
    sums = dot_count.flops_by_scope(dots, {"first": "first", "second": "second"})
    # The output of the last matmul is only summed, so that it is not needed.
    assert sums == {"first": (ONE, 2 * ONE), "second": (0, 2 * ONE), "other": (0, 0)}


def test_a_constant_has_no_gradient():
    loss = lambda x, w: jnp.square(x @ jax.lax.stop_gradient(w)).sum()
    dots = dot_count.count_dots(jax.grad(loss, argnums=(0, 1)), X, W)
    assert sum(dot.flops for dot in dots if dot.backward) == ONE


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "tensor": 2}])
def test_a_fused_kernel_counts_its_blocks(mesh):
    """Two matmuls forward, seven backward: scores are computed anew, twice."""
    array = jax.ShapeDtypeStruct((2, 300, 4, 64), jnp.bfloat16)
    scores = 2 * (2 * 4) * 384 * 384 * 64  # in whole blocks

    def loss(*arrays):
        return tpu_attention(*arrays, 0.1).astype(jnp.float32).sum()

    devices = jax.devices()[: 4 if mesh else 1]
    with jax.set_mesh(make_mesh(**mesh, devices=devices)):
        gradient = jax.grad(loss, argnums=(0, 1, 2))
        assert total(loss, array, array, array) == 2 * scores
        small = 0.01 * scores  # sums over the head width
        expected = pytest.approx(9 * scores, abs=small)
        assert total(gradient, array, array, array) == expected


def test_the_branch_with_more_matmuls_counts():
    def function(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

    assert total(function, X, W) == 2 * ONE
