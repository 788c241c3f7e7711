"""One training step: updates, metrics, random keys, donation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.nn.trees import unflatten
from blip2_jax.parallel import sharding
from blip2_jax.training import initial_params
from blip2_jax.training.schedule import make_schedule
from blip2_jax.training.state import step_key
from blip2_jax.training.tasks import Task
from tests.support.one_step import B, config_of, prepare

LINEAR = {"visual_encoder/kernel": (3, 4), "head/kernel": (4, 4)}


def linear(scale=1.0):
    """Return a task with two matrices and a loss that adds noise from the key."""

    def init_params(key):
        return unflatten(
            {path: jax.random.normal(key, shape) for path, shape in LINEAR.items()}
        )

    def loss(params, batch, key, negatives=None):
        hidden = batch["x"] @ params["visual_encoder"]["kernel"]
        noise = jax.random.normal(key, ()) if negatives is None else negatives
        value = jnp.mean((hidden @ params["head"]["kernel"]) ** 2) * scale
        return value + noise, {"loss": value, "noise": noise}

    return Task("stage1", None, init_params, loss, "image_text", ())


def run_linear(steps, task=None, negatives=None, **options):
    config = config_of("stage1")
    for name, value in options.items():
        config.optimizer[name] = value
    mesh = sharding.make_mesh()
    state, frozen, step = prepare(config, task or linear(), mesh)
    batch = sharding.make_global_batch({"x": np.ones((B, 3), np.float32)}, mesh)
    history = []
    for _ in range(steps):
        state, metrics = step(state, frozen, batch, negatives)
        history.append(jax.device_get(metrics))
    return state, frozen, history


def test_only_the_trainable_part_has_state_and_moves():
    state, frozen, history = run_linear(3)
    assert state.trainable.keys() == {"head"}
    assert int(state.step) == 3
    config, task = config_of("stage1"), linear()
    shapes = initial_params.parameter_shapes(config, task)
    before, _ = initial_params.load_frozen_parameters(
        config, task, shapes.frozen, sharding.make_mesh()
    )
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    assert history[2]["loss"] < history[0]["loss"]


def test_metrics_say_rate_norm_and_finiteness():
    _, _, history = run_linear(2)
    rate = make_schedule(config_of("stage1").optimizer, 10)
    for step, metrics in enumerate(history):
        np.testing.assert_allclose(metrics["learning_rate"], rate(step))
        assert metrics["grad_norm"] > 0
        assert metrics["finite"] == 1


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_flagged(scale):
    assert run_linear(1, linear(scale))[2][0]["finite"] == 0


def test_the_randomness_of_a_step_is_its_seed_and_number():
    _, _, history = run_linear(2)
    for step, metrics in enumerate(history):
        expected = jax.random.normal(step_key(0, step), ())
        np.testing.assert_allclose(metrics["noise"], expected, rtol=1e-6)


def test_given_negatives_replace_sampled_ones():
    assert run_linear(1, negatives=jnp.float32(7))[2][0]["noise"] == 7


def test_the_state_is_donated_and_the_frozen_part_is_not():
    config = config_of("stage1")
    mesh = sharding.make_mesh()
    state, frozen, step = prepare(config, linear(), mesh)
    batch = sharding.make_global_batch({"x": np.ones((B, 3), np.float32)}, mesh)
    step(state, frozen, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.trainable))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
