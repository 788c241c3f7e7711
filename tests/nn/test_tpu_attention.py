"""The TPU's attention kernel, interpreted on a CPU: padding, gradients, meshes."""

import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec

from blip2_jax.models.sizes import ViTConfig
from blip2_jax.models.vision.vit import VisionTransformer
from blip2_jax.nn import attention as attention_module
from blip2_jax.nn import fused_attention, tpu_attention
from blip2_jax.nn.attention import attention
from blip2_jax.parallel import sharding

TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 1.5e-2}  # relative norm of the error

fused = functools.partial(tpu_attention.tpu_attention, interpret=True)


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def assert_close(ours, theirs, dtype):
    ours, theirs = (x.astype(jnp.float32) for x in (ours, theirs))
    error = jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs)
    assert error < TOLERANCE[dtype], error


@pytest.fixture
def interpreted(monkeypatch):
    """Let `attention` interpret the kernel, at every length."""
    monkeypatch.setattr(attention_module, "tpu_attention", fused)
    with fused_attention.chosen("pallas", "tpu"):
        yield


@pytest.mark.parametrize(
    "queries, keys, dtype",
    [
        (5, 5, jnp.float32),
        (128, 128, jnp.float32),  # no padding
        (130, 257, jnp.float32),  # several blocks, of two lengths
        (5, 3, jnp.bfloat16),
    ],
)
def test_values_and_gradients_equal_the_plain_form(queries, keys, dtype, monkeypatch):
    monkeypatch.setattr(tpu_attention, "MAX_BLOCK", 128)
    heads, width, scale = 2, 24, 0.3
    arrays = [
        normal(i, 2, n, heads, width) for i, n in enumerate((queries, keys, keys))
    ]
    cotangent = normal(3, 2, queries, heads, width)

    def value_and_gradients(attend, dtype):
        result, pull = jax.vjp(attend, *(x.astype(dtype) for x in arrays))
        return result, *pull(cotangent.astype(dtype))

    ours = jax.jit(lambda: value_and_gradients(lambda *x: fused(*x, scale), dtype))()
    expected = value_and_gradients(
        functools.partial(attention, scale=scale), jnp.float32
    )
    for x, y in zip(ours, expected, strict=True):
        assert x.dtype == dtype
        assert_close(x, y, dtype)


@pytest.mark.parametrize("heads", [2, 3])  # divided along `tensor`, and not
def test_each_device_runs_its_own_rows_and_heads(heads):
    mesh = sharding.make_mesh(data=4, tensor=2)
    x = normal(0, 4, 5, heads, 8)
    loss = lambda attend, x: (attend(x, 2 * x, x) ** 2).sum()
    expected = jax.value_and_grad(functools.partial(loss, attention))(x)
    ours = functools.partial(loss, functools.partial(fused, scale=8**-0.5))
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        run = jax.jit(jax.value_and_grad(ours))
        value, gradient = run(placed)
        kernels = str(run.trace(placed).jaxpr)
    rows = f"f32[1,128,{heads // 2 if heads == 2 else heads},8]"
    assert "shard_map" in kernels and rows.replace("128", "5") in kernels
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("remat, axes", [("none", {}), ("full", {"tensor": 2})])
def test_towers_frozen_and_trained_equal_the_plain_form(interpreted, remat, axes):
    config = ViTConfig(16, 2, 2, 32, image_size=32, patch_size=16)
    tower = VisionTransformer(config, jnp.bfloat16, remat=remat)
    images = normal(0, 4, 32, 32, 3, dtype=jnp.bfloat16)
    params = tower.init(jax.random.key(1), images)

    def loss(params, scale, *, frozen):
        params = jax.lax.stop_gradient(params) if frozen else params
        features = tower.apply(params, images).astype(jnp.float32)
        return (features * scale).sum()

    @jax.jit
    def gradients(params, scale):
        trained = jax.grad(functools.partial(loss, frozen=False))
        of_scale = jax.grad(functools.partial(loss, frozen=True), argnums=1)
        return trained(params, scale), of_scale(params, scale)

    scale = normal(2, 4, 5, 16)
    with jax.set_mesh(sharding.make_mesh(data=-1, **axes)) if axes else nullcontext():
        ours = gradients(params, scale)
    with fused_attention.chosen("xla"):
        expected = gradients(params, scale)
    for x, y in zip(ours, expected, strict=True):
        assert_close(ravel_pytree(x)[0], ravel_pytree(y)[0], jnp.bfloat16)


@pytest.mark.parametrize(
    "length, padded, block",
    [
        (5, 128, 128),
        (257, 384, 384),
        (577, 640, 640),
        (677, 768, 384),
        (1226, 1280, 640),
    ],
)
def test_padding_is_to_whole_blocks(length, padded, block):
    assert tpu_attention.padded_length(length) == padded
    assert tpu_attention.block_length(padded) == block
