"""Length buckets: unchanged losses and gradients, one compiled program per bucket."""

import functools
import itertools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.data.pipeline import training_batches
from blip2_jax.losses.hard_negatives import Negatives
from blip2_jax.models.blip2_stage1 import INITIAL_TEMPERATURE
from blip2_jax.nn.trees import split
from blip2_jax.parallel import sharding
from blip2_jax.training import loop as loops
from blip2_jax.training import tasks
from blip2_jax.training.checkpoints import Checkpoints
from blip2_jax.training.metrics_log import read_metrics
from blip2_jax.training.step import loss_and_gradients
from blip2_jax.training.tasks import make_task
from tests.support import tiny_experiment as tiny
from tests.support import toy_task

B = 4


def batches(config, task, buckets):
    """Return the first 20 batches of a run with these buckets."""
    options = config.data.copy_and_resolve_references().unlock()
    options.length_buckets, options.workers = buckets, 0
    stream = training_batches(options, task.batch_format, seed=0, batch_size=B)
    try:
        return list(itertools.islice(stream, 20))
    finally:
        stream.close()


@pytest.mark.parametrize("name", ["stage1", "opt", "t5"])
def test_losses_and_gradients_are_those_of_full_padding(name):
    """In fp32, without dropout and with the same negatives."""
    config = tiny.get_config(name).unlock()
    config.model.overrides.qformer.depth = 1
    task = make_task(config.lock())
    full = batches(config, task, ())
    cut = batches(config, task, (10, 16))
    width = lambda batch: next(a.shape[1] for n, a in batch.items() if "_ids" in n)
    step = next(step for step, batch in enumerate(cut) if width(batch) == 10)
    assert width(full[step]) == 16
    others = jnp.roll(jnp.arange(B), 1)
    replay = Negatives(image=others, text=others[::-1]) if name == "stage1" else None
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    params = jax.jit(task.init_params)(jax.random.key(0))
    trainable, frozen, _ = split(params, config.frozen)
    run = jax.jit(functools.partial(loss_and_gradients, task))
    _, expected, gradients = run(
        trainable, frozen, sharding.make_global_batch(full[step], mesh), None, replay
    )
    _, metrics, ours = run(
        trainable, frozen, sharding.make_global_batch(cut[step], mesh), None, replay
    )
    losses = [metric for metric in expected if metric.startswith("loss")]
    assert len(losses) == (4 if name == "stage1" else 2)
    for metric in losses:
        np.testing.assert_allclose(metrics[metric], expected[metric], rtol=1e-5)

    def same(path, theirs, mine):
        bound = 1e-5 * np.abs(theirs).max() + 1e-6
        if (
            path[-1].key == "temperature"
        ):  # rounding of terms of size 1 / temperature**2
            bound = 2**-24 / INITIAL_TEMPERATURE**2
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=bound, err_msg=str(path))

    jax.tree_util.tree_map_with_path(same, gradients, ours)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) > 1e-2


@pytest.fixture
def traced(monkeypatch):
    """Replace stage 1 by the toy task; collect the text widths of its traces."""
    widths = []

    def make_counted(config):
        task = toy_task.make_toy(config)

        def loss(params, batch, key, negatives=None):
            widths.append(batch["text_ids"].shape[1])
            return task.loss(params, batch, key, negatives)

        return tasks.Task(**{**vars(task), "loss": loss})

    monkeypatch.setitem(tasks.TASKS, "stage1", make_counted)
    return widths


def test_a_run_has_a_program_a_bucket_and_continues_bit_for_bit(
    tmp_path, monkeypatch, traced
):
    config = toy_task.get_config().unlock()
    config.batch_size, config.data.max_text_length = 2 * jax.device_count(), 16
    config.data.length_buckets = (8, 10, 12, 14, 16)
    config.data.train = ({"kind": "shapes", "split": "train", "size": 64, "things": 1},)
    config.lock()
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert loops.train(config, whole) == 0
    assert len(traced) == len(set(traced)) > 1
    lines = read_metrics(whole)
    compiled = [line["step"] for line in lines if "compile_seconds" in line]
    assert len(compiled) == len(traced)

    launch = loops.Loop.launch_step

    def launch_and_signal(self, step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return launch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(loops.Loop, "launch_step", launch_and_signal)
        assert loops.train(config, stopped) == 128 + signal.SIGTERM
    assert loops.train(config, stopped) == 0
    runs = [
        (
            [line["loss"] for line in read_metrics(run)],
            Checkpoints(run, read_only=True).read(20, ("trainable", "optimizer")).trees,
        )
        for run in (whole, stopped)
    ]
    jax.tree.map(np.testing.assert_array_equal, *runs)
