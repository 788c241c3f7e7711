"""Matmul counts: loops, dead code, scopes, forward and backward pass."""

import jax
import jax.numpy as jnp
import pytest

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
