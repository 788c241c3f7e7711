"""The stage-1 loss of a new model: expected value, and equality on any mesh."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from blip2_jax.losses.stage1 import Stage1Options, stage1_loss
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.sizes import FeaturesConfig
from blip2_jax.parallel.sharding import make_mesh
from tests.support.golden_stage1 import config

B, T, V = 8, 6, 120
SIZES = dataclasses.replace(
    config(),
    vision=FeaturesConfig(5, 12),
    qformer=dataclasses.replace(config().qformer, depth=2, dropout=0.1),
)
MODEL = Blip2Stage1(SIZES)


def make_batch():
    ids, features = jax.random.split(jax.random.key(0))
    return {
        "features": jax.random.normal(features, (B, 5, 12)),
        "text_ids": jax.random.randint(ids, (B, T), 0, V - 1),
        "text_mask": jnp.arange(T)[None] < jnp.arange(B)[:, None] % 4 + 3,
        "image_id": jnp.array([0, 1, 2, 3, 4, 5, 6, 0]),
    }


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: init_params(MODEL, jax.random.key(0)))()


def run(params, batch, key):
    return jax.jit(lambda p, b: stage1_loss(MODEL, p, b, key)[1])(params, batch)


def test_first_loss(params):
    """The loss is about ln B + ln 2 + ln V; temperature 1 suits the small width."""
    metrics = run({**params, "temperature": jnp.array(1.0)}, make_batch(), None)
    np.testing.assert_allclose(metrics["loss_itc"], math.log(B), atol=0.7)
    np.testing.assert_allclose(metrics["loss_itm"], math.log(2), atol=0.2)
    np.testing.assert_allclose(metrics["loss_itg"], math.log(V), atol=0.2)


@pytest.mark.parametrize("shape", [(8, 1), (2, 2)])
def test_a_mesh_changes_nothing(params, shape):
    """Dropout and negatives come from the same key."""
    key, batch = jax.random.key(5), make_batch()
    expected = run(params, batch, key)
    data, fsdp = shape
    mesh = make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        metrics = run(params, jax.device_put(batch, rows), key)
    for direction in ("image", "text"):
        drawn = (getattr(m["negatives"], direction) for m in (metrics, expected))
        np.testing.assert_array_equal(*drawn)
    for name in ("loss_itc", "loss_itm", "loss_itg", "itm_accuracy", "loss"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)


def test_objectives_of_weight_zero_are_skipped(params):
    options = Stage1Options(itm_weight=0, itg_weight=0)
    loss = lambda p, b: stage1_loss(MODEL, p, b, None, options)
    value, metrics = jax.eval_shape(loss, params, make_batch())
    assert value.shape == ()
    assert metrics.keys() == {"loss", "loss_itc", "temperature"}
