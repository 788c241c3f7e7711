"""A training step gives the same numbers on any mesh, in one process or several."""

import jax
import numpy as np
import pytest

from blip2_jax.parallel import sharding
from blip2_jax.training import initial_params
from blip2_jax.training.optimizer import make_optimizer
from blip2_jax.training.state import create_state
from blip2_jax.training.step import make_train_step
from blip2_jax.training.tasks import make_task
from tests.support import one_step as one_step_module
from tests.support.one_step import one_step
from tests.support.processes import run_together

ONE = (1, 1, 1)
MESHES = {
    2: [(2, 1, 1), (1, 2, 1), (1, 1, 2)],
    4: [(4, 1, 1), (1, 4, 1), (1, 1, 4), (2, 1, 2)],
    8: [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)],
}
FAST = [
    ("stage1", (1, 4, 1)),
    ("stage2", (2, 2, 2)),
    ("vqa", (2, 1, 2)),
    ("lora", (2, 2, 2)),
]
# Two processes take the meshes of eight devices below.
SLOW = [
    ("retrieval", (2, 2, 1)),
    *(("stage1", axes) for axes in MESHES[2]),
    *(("stage2", axes) for axes in MESHES[4]),
    ("t5", (1, 4, 1)),
    ("t5", (2, 2, 2)),
]


def assert_same_step(actual, expected):
    """Compare metrics, sampled negatives, gradients and new parameters."""
    assert actual[2].keys() == expected[2].keys()
    for name, value in expected[2].items():
        rtol = 0 if name.startswith("negatives") else 1e-5
        np.testing.assert_allclose(actual[2][name], value, rtol=rtol, err_msg=name)
    for path, value in expected[0].items():
        np.testing.assert_allclose(actual[0][path], value, atol=1e-5, err_msg=path)
    for path, value in expected[1].items():
        bound = 1e-5 * np.abs(value).max() + 2e-6
        np.testing.assert_allclose(
            actual[1][path], value, rtol=0, atol=bound, err_msg=path
        )


@pytest.mark.parametrize(
    ("task", "axes"),
    [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_a_mesh_changes_nothing(task, axes):
    assert_same_step(one_step(task, axes), one_step(task, ONE))


@pytest.mark.parametrize(
    ("task", "axes"),
    [
        ("stage1", (4, 2, 1)),
        pytest.param("stage2", (8, 1, 1), marks=pytest.mark.slow),
        pytest.param("retrieval", (2, 2, 2), marks=pytest.mark.slow),
    ],
)
def test_a_state_split_over_all_devices_changes_nothing(task, axes):
    assert_same_step(one_step(task, axes, sharded=True), one_step(task, ONE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "axes"),
    # With (1, 1, 8) both processes read all rows.
    [(task, axes) for task in ("stage1", "stage2") for axes in MESHES[8]],
)
def test_two_processes_change_nothing(tmp_path, task, axes):
    out = tmp_path / "step.npz"
    run_together(one_step_module.__file__, task, ",".join(map(str, axes)), out)
    parts = ({}, {}, {})
    with np.load(out) as arrays:
        for name, value in arrays.items():
            part, _, path = name.partition(":")
            parts[int(part)][path] = value
    assert_same_step(parts, one_step(task, ONE))


LAYERS = 8
# A model with nearly all bytes in a frozen tower.
DEEP = one_step_module.SIZES | {
    "language_model": one_step_module.OPT
    | {"width": 128, "depth": LAYERS, "mlp_dim": 512}
}


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def compiled_step(devices):
    """Compile a step over a mesh with `fsdp` only.

    Returns:
      Its `memory_analysis`, and the bytes of all arguments of the step, of the
      replicated ones, and of the blocks of the language model.
    """
    config = one_step_module.config_of("stage2")
    config.model.overrides = DEEP
    task, mesh = (
        make_task(config),
        sharding.make_mesh(1, devices, 1, devices=jax.devices()[:devices]),
    )
    shapes = initial_params.parameter_shapes(config, task)
    optimizer = make_optimizer(config.optimizer, lambda step: 1e-4, shapes.trainable)
    state = jax.eval_shape(lambda tree: create_state(tree, optimizer), shapes.trainable)
    step = make_train_step(
        task, optimizer, lambda step: 1e-4, mesh, state, shapes.frozen, seed=0
    )
    batch = sharding.make_global_batch(one_step_module.rows("stage2"), mesh)
    compiled = step.trace(state, shapes.frozen, batch, None).lower().compile()
    leaves = zip(
        jax.tree.leaves((state, shapes.frozen)),
        jax.tree.leaves((step.state, step.frozen)),
        strict=True,
    )
    replicated = bytes_of([x for x, sharding in leaves if not any(sharding.spec)])
    blocks = bytes_of(shapes.frozen["language_model"]["blocks"])
    everything = bytes_of((state, shapes.frozen, batch))
    return compiled.memory_analysis(), everything, replicated, blocks


@pytest.mark.parametrize(
    "devices",
    [pytest.param(2, marks=pytest.mark.slow), 8],
)
def test_fsdp_divides_the_memory_of_a_step(devices):
    """Only small arrays are replicated, and temporaries hold no whole tower.

    Temporaries hold a copy of the device's shard of the tower, made by the scan over
    layers, and a few gathered layers.
    """
    memory, everything, replicated, blocks = compiled_step(devices)
    arguments = memory.argument_size_in_bytes
    assert arguments < everything * (1 / devices + 0.1)
    expected = replicated + (everything - replicated) / devices
    np.testing.assert_allclose(arguments, expected, rtol=0.01)
    assert memory.temp_size_in_bytes < blocks / devices + 4 * blocks / LAYERS
