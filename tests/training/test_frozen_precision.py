"""Runs whose frozen towers are quantised (`config.frozen_precision`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.inference.load import load
from blip2_jax.nn import low_rank
from blip2_jax.nn.quantized import is_quantized, restore_kernel
from blip2_jax.nn.trees import flatten
from blip2_jax.parallel import sharding
from blip2_jax.planning.program import training_program
from blip2_jax.training.setup import set_up
from blip2_jax.training.train_config import ConfigError
from tests.support.tiny_runs import tiny_config

INT8 = "int8_matmul"


def config_of(task, fsdp=1, **schemes):
    config = tiny_config(task).unlock()
    config.frozen_precision.update(schemes)
    config.mesh.update({"data": 1, "fsdp": fsdp})
    return config.lock()


def losses(run, steps=2):
    taken = []
    for _ in range(steps):
        batch = sharding.make_global_batch(next(run.batches), run.mesh)
        run.state, metrics = run.train_step(run.state, run.frozen, batch, None)
        taken.append(float(metrics["loss"]))
    run.batches.close()
    return taken


def devices(monkeypatch, count):
    """Let runs see only the first devices."""
    some = jax.devices()[:count]
    monkeypatch.setattr(jax, "devices", lambda *_: some)


@pytest.mark.parametrize(
    "other", [("plain", 1, ""), pytest.param(("two", 2, INT8), marks=pytest.mark.slow)]
)
def test_stage1_on_an_8_bit_encoder(tmp_path, monkeypatch, other):
    """Losses are near those of the plain run, and equal on a mesh that shards."""
    taken = {}
    for name, count, scheme in (other, ("one", 1, INT8)):
        with monkeypatch.context() as patch:
            devices(patch, count)
            run = set_up(config_of("stage1", count, vision=scheme), tmp_path / name)
        kernels = [leaf for leaf in flatten(run.frozen).values() if is_quantized(leaf)]
        assert len(kernels) == (6 if scheme else 0)
        assert all(kernel.stored.qvalue.dtype == jnp.int8 for kernel in kernels)
        taken[name] = losses(run)
    rtol = 0.02 if other[0] == "plain" else 1e-5
    np.testing.assert_allclose(taken["one"], taken[other[0]], rtol=rtol)
    assert other[0] != "plain" or taken["one"] != taken["plain"]
    run.checkpoints.save(2, run.trees(), {})
    run.checkpoints.close()
    assert load(tmp_path / "one").model.config == run.task.model.config


def test_stage2_learns_through_an_8_bit_language_model(tmp_path, monkeypatch):
    devices(monkeypatch, 1)
    schemes = {"vision": "int8", "language_model": "int8_matmul"}
    run = set_up(config_of("stage2", **schemes), tmp_path / "run")
    before = np.asarray(run.state.trainable["language_projection"]["kernel"])
    losses(run)
    after = np.asarray(run.state.trainable["language_projection"]["kernel"])
    assert not np.array_equal(before, after)


def test_lora_beside_8_bit_kernels(tmp_path, monkeypatch):
    devices(monkeypatch, 1)
    config = config_of("stage2", language_model="int8").unlock()
    path = "language_model/blocks/attention/query/kernel"
    config.lora.update({"rank": 2, "alpha": 4.0, "targets": (path,)})
    run = set_up(config.lock(), tmp_path / "run")
    losses(run, steps=3)
    trained, frozen = flatten(run.state.trainable), flatten(run.frozen)
    a, b = (trained[name] for name in low_rank.matrix_paths(path))
    assert float(jnp.abs(b).max()) > 0
    merged = flatten(run.parameters())[path]
    expected = restore_kernel(frozen[path]) + 2.0 * jnp.matmul(
        a, b, precision="highest"
    )
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6)


def test_plans_count_the_bytes_of_the_stored_kernels():
    sizes = {}
    for scheme in ("", "int8_matmul"):
        config = config_of("stage1", vision=scheme)
        program = training_program(config, jax.devices()[:1])
        sizes[scheme] = sum(
            leaf.size * leaf.dtype.itemsize
            for path, leaf in flatten(program.frozen).items()
            for leaf in jax.tree.leaves(leaf)
            if "blocks" in path and path.endswith("kernel")
        )
    assert 0.25 < sizes["int8_matmul"] / sizes[""] < 0.35  # scales of narrow kernels


def test_unknown_schemes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"frozen_precision\.vision is 'int2'"):
        set_up(config_of("stage1", vision="int2"), tmp_path / "run")
