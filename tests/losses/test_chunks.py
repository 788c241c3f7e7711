"""Chunks of a batch give the losses and gradients of the whole batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from blip2_jax.losses import chunks
from blip2_jax.losses.stage1 import Stage1Options, stage1_loss
from blip2_jax.losses.stage1_chunks import stage1_in_chunks
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.sizes import FeaturesConfig
from blip2_jax.nn.trees import flatten, split
from blip2_jax.parallel import sharding
from blip2_jax.training.step import loss_and_gradients
from blip2_jax.training.tasks import make_task
from tests.support.golden_stage1 import config
from tests.support.one_step import config_of, rows

B, T, V = 8, 6, 120
SIZES = dataclasses.replace(
    config(),
    vision=FeaturesConfig(5, 12),
    qformer=dataclasses.replace(config().qformer, depth=1, dropout=0.0),
)
MODEL = Blip2Stage1(SIZES)
OPTIONS = Stage1Options(itm_weight=2.0, itg_weight=0.5, full_itc_gradient=True)


def make_batch(size=B):
    """Return captions of unequal lengths; two rows show the same image."""
    ids, features = jax.random.split(jax.random.key(0))
    return {
        "features": jax.random.normal(features, (size, 5, 12)),
        "text_ids": jax.random.randint(ids, (size, T), 0, V - 1),
        "text_mask": jnp.arange(T)[None] < jnp.arange(size)[:, None] % 4 + 3,
        "image_id": jnp.arange(size) % (size - 1),
    }


@functools.cache
def fresh():
    return jax.jit(lambda: init_params(MODEL, jax.random.key(0)))()


def whole(trainable, frozen, batch, key):
    loss = lambda params: stage1_loss(MODEL, params, batch, key, OPTIONS)
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(trainable)
    return value, metrics, gradient


@functools.cache
def expected():
    return jax.jit(whole)(fresh(), {}, make_batch(), jax.random.key(3))


def assert_same(actual, reference):
    assert actual[1].keys() == reference[1].keys()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        actual[:2],
        reference[:2],
    )
    for path, value in flatten(reference[2]).items():
        bound = 1e-5 * np.abs(value).max() + 1e-6
        np.testing.assert_allclose(
            flatten(actual[2])[path], value, rtol=0, atol=bound, err_msg=path
        )


@pytest.mark.parametrize(
    ("count", "axes"), [(4, (1, 1)), pytest.param(2, (2, 2), marks=pytest.mark.slow)]
)
def test_stage1_keeps_its_contrastive_batch(count, axes):
    """Sampled negatives, losses and gradients, on one device and on a mesh."""
    mesh = sharding.make_mesh(*axes, devices=jax.devices()[: axes[0] * axes[1]])
    gradients = jax.jit(stage1_in_chunks(MODEL, OPTIONS, count))
    params, reference = fresh(), expected()  # without a mesh, shared by both cases
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        batch = jax.device_put(make_batch(), rows)
        assert_same(gradients(params, {}, batch, jax.random.key(3)), reference)


def token_loss(params, batch, key, negatives=None):
    """A mean over tokens; rows have unequal numbers of tokens."""
    values = jnp.tanh(batch["x"] @ params["kernel"]) ** 2
    tokens = batch["mask"].sum(dtype=jnp.float32)
    value = (values.sum(-1) * batch["mask"]).sum() / tokens
    return value, {"loss": value, "tokens": tokens}


def test_means_over_tokens_are_those_of_the_whole_batch():
    batch = {
        "x": np.random.default_rng(0).normal(size=(12, 5, 4)).astype(np.float32),
        "mask": np.arange(5)[None] < (np.arange(12) % 5)[:, None] + 1,
    }
    params = {"kernel": jnp.eye(4)}
    loss = lambda params: token_loss(params, batch, None)
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    in_chunks = jax.jit(chunks.mean_in_chunks(token_loss, 3, "tokens"))
    actual = in_chunks(params, {}, batch, None)
    assert_same(actual, (value, metrics, gradient))


def test_chunks_take_rows_in_turn_and_join_again():
    rows = jnp.arange(12).reshape(6, 2)
    parts = chunks.split_rows(rows, 3)
    np.testing.assert_array_equal(parts[1], rows[1::3])
    np.testing.assert_array_equal(chunks.join_rows(parts), rows)


@pytest.mark.slow
def test_stage2_in_chunks():
    values = []
    for count in (1, 4):
        changed = config_of("stage2")
        changed.optimizer.accumulate = count
        task = make_task(changed)
        params = split(task.init_params(jax.random.key(0)), changed.frozen)
        batch = {
            name: array
            for name, array in rows("stage2").items()
            if name not in ("position", "_key")
        }
        step = jax.jit(functools.partial(loss_and_gradients, task))
        values.append(step(params.trainable, params.frozen, batch, None))
    assert_same(*values)


@pytest.mark.slow
def test_memory_falls_with_the_number_of_chunks():
    """Activations dominate; what the first pass keeps of every row is small."""
    params = jax.eval_shape(fresh)
    batch = jax.eval_shape(lambda: make_batch(128))
    key = jax.eval_shape(lambda: jax.random.key(0))
    temporaries = [
        jax.jit(function)
        .lower(params, {}, batch, key)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for function in (whole, stage1_in_chunks(MODEL, OPTIONS, 8))
    ]
    assert temporaries[1] < temporaries[0] / 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "objective",
            {"itm_every": 2},
            "accumulate is 2, so config.objective.itm_every",
        ),
        ("objective", {"num_shards": 2}, "so config.objective.num_shards must be 1"),
        ("frozen", (), "needs a frozen image encoder; .* visual_encoder/"),
    ],
)
def test_what_cannot_be_taken_in_chunks_is_refused(key, value, message):
    changed = config_of("stage1")
    changed.optimizer.accumulate = 2
    changed[key] = value
    with pytest.raises(ValueError, match=message):
        make_task(changed)
