"""One step: what moves, what is reported, and the same numbers on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax import sharding
from blip2_jax.training import initialise
from blip2_jax.training.config import default_config
from blip2_jax.training.optimizer import make_optimizer
from blip2_jax.training.partition import flatten, unflatten
from blip2_jax.training.schedule import make_schedule
from blip2_jax.training.state import create_state, step_key
from blip2_jax.training.step import make_train_step
from blip2_jax.training.tasks import Task, make_task

B, T = 8, 5
SIZES = {
    "vision": {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 16, "image_size": 28},
    "qformer": {
        "width": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "num_queries": 2,
        "vocab_size": 24, "projection_dim": 8, "max_positions": 16,
        "dropout": 0.0,
    },
}
OPT = {
    "kind": "opt", "width": 16, "depth": 2, "heads": 2, "mlp_dim": 16,
    "vocab_size": 24, "max_positions": 32,
}
MESHES = {1: (1, 1, 1), 2: (2, 1, 1), 4: (1, 4, 1), 8: (2, 2, 2)}


def config_of(task):
    config = default_config(task).unlock()
    config.precision, config.steps = "float32", 10
    language = {"language_model": OPT} if task == "stage2" else {}
    config.model.overrides = SIZES | language
    config.frozen_sources.vision = config.frozen_sources.language_model = "random"
    # At a rate of 0 the first update would hide; Adam's division would magnify
    # rounding without an epsilon near the gradients' size.
    config.optimizer.warmup_start_learning_rate = 1e-3
    config.optimizer.warmup_steps, config.optimizer.eps = 5, 1e-3
    return config


def rows(task):
    """A batch as one process reads it."""
    rng = np.random.default_rng(0)
    mask = np.arange(T)[None] < (np.arange(B) % 3 + 3)[:, None]
    return {
        "image": rng.integers(0, 256, (B, 28, 28, 3), dtype=np.uint8),
        "text_ids": rng.integers(3, 23, (B, T), dtype=np.int32),
        "text_mask": mask,
        **({"target_mask": mask} if task == "stage2" else
           {"image_id": np.array([0, 1, 2, 3, 4, 5, 6, 0], np.int32)}),
        "position": np.arange(B), "_key": ["k"] * B,
    }


def prepare(config, task, mesh):
    """State, frozen parameters and step of a new run."""
    shapes = initialise.parameter_shapes(config, task)
    frozen, _ = initialise.load_frozen_parameters(config, task, shapes.frozen, mesh)
    begun = initialise.initialise(config, task, shapes.trainable, mesh)
    schedule = make_schedule(config.optimizer, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule, shapes.trainable)
    create = functools.partial(create_state, optimizer=optimizer)
    layout = sharding.shardings(jax.eval_shape(create, begun.trainable), mesh)
    state = jax.jit(create, out_shardings=layout)(begun.trainable)
    step = make_train_step(
        task, optimizer, schedule, mesh, state, frozen, seed=config.seed
    )
    return state, frozen, step


@functools.cache
def one_step(task, devices):
    """Parameters after one step, gradients, metrics."""
    config = config_of(task)
    mesh = sharding.make_mesh(*MESHES[devices], devices=jax.devices()[:devices])
    state, frozen, step = prepare(config, make_task(config), mesh)
    state, metrics = step(state, frozen, sharding.global_batch(rows(task), mesh))
    gradients = jax.tree.map(lambda mean: 10 * mean, state.optimizer[0].mu)
    return flatten(state.trainable), flatten(gradients), metrics


@pytest.mark.parametrize(("task", "devices"), [
    ("stage1", 4), ("stage2", 8),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ("stage1", 2), ("stage1", 8), ("stage2", 2), ("stage2", 4),
    ]),
])
def test_a_mesh_changes_nothing(task, devices):
    """Losses, drawn negatives, gradients and new parameters."""
    expected, found = one_step(task, 1), one_step(task, devices)
    assert found[2].keys() == expected[2].keys()
    negatives = [part[2].get("negatives") for part in (found, expected)]
    jax.tree.map(np.testing.assert_array_equal, *negatives)
    for name, value in expected[2].items():
        if name != "negatives":
            np.testing.assert_allclose(found[2][name], value, rtol=1e-5, err_msg=name)
    for path, value in expected[0].items():
        np.testing.assert_allclose(found[0][path], value, atol=1e-5, err_msg=path)
    for path, value in expected[1].items():
        bound = 1e-4 * np.abs(value).max() + 2e-6
        np.testing.assert_allclose(
            found[1][path], value, rtol=0, atol=bound, err_msg=path
        )


def test_parameters_and_moments_are_divided():
    trainable, gradients, _ = one_step("stage1", 4)
    for tree in (trainable, gradients):
        kernel = tree["qformer/layer_0/query_mlp/up/kernel"]
        assert kernel.addressable_shards[0].data.shape == (4, 16)


LINEAR = {"visual_encoder/kernel": (3, 4), "head/kernel": (4, 4)}


def linear(scale=1.0):
    """A task of two matrices; the loss sees the key."""

    def init_params(key):
        return unflatten({
            path: jax.random.normal(key, shape) for path, shape in LINEAR.items()
        })

    def loss(params, batch, key, replay=None):
        hidden = batch["x"] @ params["visual_encoder"]["kernel"]
        noise = jax.random.normal(key, ()) if replay is None else replay
        value = jnp.mean((hidden @ params["head"]["kernel"]) ** 2) * scale
        return value + noise, {"loss": value, "noise": noise}

    return Task("stage1", None, init_params, loss, "image_text", ())


def run_linear(steps, task=None, replay=None, **options):
    config = config_of("stage1")
    for name, value in options.items():
        config.optimizer[name] = value
    mesh = sharding.make_mesh()
    state, frozen, step = prepare(config, task or linear(), mesh)
    batch = sharding.global_batch({"x": np.ones((B, 3), np.float32)}, mesh)
    history = []
    for _ in range(steps):
        state, metrics = step(state, frozen, batch, replay)
        history.append(jax.device_get(metrics))
    return state, frozen, history


def test_only_the_trainable_part_has_state_and_moves():
    state, frozen, history = run_linear(3)
    assert state.trainable.keys() == {"head"}
    assert int(state.step) == 3
    config, task = config_of("stage1"), linear()
    shapes = initialise.parameter_shapes(config, task)
    before, _ = initialise.load_frozen_parameters(
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


def test_replay_takes_the_place_of_draws():
    assert run_linear(1, replay=jnp.float32(7))[2][0]["noise"] == 7


def test_the_state_is_donated_and_the_frozen_part_is_not():
    config = config_of("stage1")
    mesh = sharding.make_mesh()
    state, frozen, step = prepare(config, linear(), mesh)
    batch = sharding.global_batch({"x": np.ones((B, 3), np.float32)}, mesh)
    step(state, frozen, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.trainable))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
