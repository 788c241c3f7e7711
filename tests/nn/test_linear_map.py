"""`linear_map` in a dense layer: values, gradients and dtypes are flax's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.nn.layers import dense

X = jax.random.normal(jax.random.key(0), (2, 3, 5))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("x", [X, X[0], X[0, 0]], ids=["batch", "rows", "row"])
def test_it_is_that_of_flax(x, dtype):
    ours, plain = dense(4, dtype), nn.Dense(4, dtype=dtype)
    params = ours.init(jax.random.key(1), x)

    def loss(params, x, layer):
        y = layer.apply(params, x)
        assert y.dtype == dtype
        return jnp.sin(y.astype(jnp.float32)).sum()

    graded = jax.value_and_grad(loss, argnums=(0, 1))
    tolerance = 1e-6 if dtype == jnp.float32 else 2e-2
    for one, other in zip(
        *(jax.tree.leaves(graded(params, x, layer)) for layer in (ours, plain)),
        strict=True,
    ):
        assert one.dtype == other.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_the_gradient_of_a_kernel_comes_as_the_kernel_is_stored():
    """No product that is turned round afterwards."""
    layer = dense(4, jnp.float32)
    params = layer.init(jax.random.key(1), X)
    step = jax.grad(lambda params, x: layer.apply(params, x).sum())
    found = str(jax.make_jaxpr(step)(params, X))
    assert "f32[5,4] = dot_general" in found and "transpose" not in found
