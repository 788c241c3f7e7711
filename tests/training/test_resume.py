"""`kill -9` in mid-run, the same command again: the losses of a run never stopped."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from blip2_jax.training.checkpoints import Checkpoints
from blip2_jax.training.metrics_log import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
TRAIN = ROOT / "launch" / "train.py"
TOY = pathlib.Path(__file__).with_name("toy_task.py")
TINY = pathlib.Path(__file__).with_name("tiny.py")
PATIENCE_S = 1800


def start(script, config, run_dir, *changes, devices=1) -> subprocess.Popen:
    """Training in a process of its own, with so many virtual devices."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, script, f"--config={config}", f"--workdir={run_dir}"]
    options = [f"--config.{change}" for change in changes]
    return subprocess.Popen(
        [*map(str, command), *options], env=environment, stderr=subprocess.PIPE
    )


def run(*arguments, **options) -> None:
    """Train to the end."""
    process = start(*arguments, **options)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors.decode()[-2000:]


def run_and_kill(at_step, script, config, run_dir, *changes, **options) -> None:
    """Train, and `kill -9` once a step has been reported."""
    process = start(script, config, run_dir, *changes, **options)
    deadline = time.monotonic() + PATIENCE_S
    while last_step(run_dir) < at_step:
        assert process.poll() is None, process.stderr.read().decode()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def last_step(run_dir) -> int:
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return text.count("\n")


def losses(run_dir) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(run_dir)}


def assert_same_run(left, right, step) -> None:
    """Every loss and every parameter, bit for bit."""
    assert list(losses(left)) == list(range(1, step + 1))
    assert losses(left) == losses(right)
    kept = [
        Checkpoints(run_dir, read_only=True).read(step, ("trainable", "optimizer"))
        for run_dir in (left, right)
    ]
    first, second = (flat(restored.trees) for restored in kept)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def flat(tree, prefix="") -> dict[str, np.ndarray]:
    if not isinstance(tree, dict | list):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    result = {}
    for name, value in items:
        result |= flat(value, f"{prefix}/{name}")
    return result


def test_a_killed_run_continues_bit_for_bit_with_any_number_of_workers(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    common = ("steps=80", "checkpoint.every=10")
    run(TOY, TOY, whole, *common, "data.workers=0")
    run_and_kill(25, TOY, TOY, killed, *common, "data.workers=2")
    assert last_step(killed) < 80, "the run was faster than the kill"
    run(TOY, TOY, killed, *common, "data.workers=1")
    assert_same_run(killed, whole, 80)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["stage1", "opt", "t5"])
def test_both_stages_continue_bit_for_bit(tmp_path, task):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    config, changes = f"{TINY}:{task}", []
    if task != "stage1":
        run(TRAIN, f"{TINY}:stage1", tmp_path / "stage1", "steps=8")
        changes = [f"init.from_run={tmp_path / 'stage1'}"]
    run(TRAIN, config, whole, *changes, "data.workers=2")
    run_and_kill(12, TRAIN, config, killed, *changes, "data.workers=2")
    run(TRAIN, config, killed, *changes, "data.workers=1")
    assert_same_run(killed, whole, 40)


@pytest.mark.slow
def test_eight_devices_continue_on_four_with_the_same_negatives(tmp_path):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    config = f"{TINY}:stage1"
    run(TRAIN, config, whole, "logging.negatives=True", devices=8)
    replay = f"replay={whole / 'negatives.jsonl'}"
    run_and_kill(12, TRAIN, config, moved, replay, devices=8)
    run(TRAIN, config, moved, replay, "mesh.fsdp=2", devices=4)
    assert list(losses(moved)) == list(range(1, 41))
    np.testing.assert_allclose(
        list(losses(moved).values()), list(losses(whole).values()), rtol=1e-5
    )
