"""Runs of two processes: start, joint stop, continuation on other meshes."""

import signal

import numpy as np
import pytest

from benchmarks.soak import TRAIN, last_step, log_of, losses, run, start, wait_for_step
from blip2_jax.parallel import hosts
from blip2_jax.training.checkpoints import Checkpoints
from blip2_jax.training.metrics_log import read_metrics
from tests.support.processes import DEVICES, SUPPORT, coordinator_flags, run_together

TOY = SUPPORT / "toy_task.py"
TINY = SUPPORT / "tiny_experiment.py"
MEET = SUPPORT / "hosts_script.py"
TIMEOUT_S = 300


def start_two(*arguments):
    return [
        start(*arguments, devices=DEVICES, flags=flags) for flags in coordinator_flags()
    ]


def codes_of(processes, run_dir):
    """Return the exit codes; kill processes that do not end."""
    try:
        return [process.wait(TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
        print(log_of(run_dir).read_text()[-3000:])


def assert_same_losses(left, right, steps):
    assert list(losses(left)) == list(range(1, steps + 1))
    values = [
        [losses(run_dir)[step] for step in range(1, steps + 1)]
        for run_dir in (left, right)
    ]
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_processes_communicate_and_share_a_batch():
    run_together(MEET)


def test_two_processes_stop_together_and_one_continues(tmp_path):
    """SIGTERM to one process stops both; losses equal those of a single process."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    steps = 60
    common = (TOY, TOY)
    run(*common, whole, f"steps={steps}", devices=2 * DEVICES)
    processes = start_two(*common, moved, f"steps={steps}")
    wait_for_step(10, moved, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    assert codes_of(processes, moved) == [128 + signal.SIGTERM] * 2
    stopped = last_step(moved)
    assert 10 <= stopped < steps, "the run was faster than the signal"
    assert Checkpoints(moved, read_only=True).find("last") == stopped
    run(*common, moved, f"steps={steps}", "mesh.fsdp=2", devices=DEVICES)
    assert_same_losses(moved, whole, steps)


@pytest.mark.slow
def test_a_failing_process_reports_why_and_ends_the_other(tmp_path):
    run_dir = tmp_path / "run"
    changes = ((), ("frozen_sources.vision=/no/such",))
    processes = [
        start(TOY, TOY, run_dir, *change, devices=DEVICES, flags=flags)
        for change, flags in zip(changes, coordinator_flags(), strict=True)
    ]
    assert codes_of(processes, run_dir) == [1, 1]
    assert "error: no file or folder '/no/such'" in log_of(run_dir).read_text()
    assert not run_dir.exists()


@pytest.mark.slow
def test_one_process_continues_the_run_of_two(tmp_path):
    """Both are killed by SIGKILL; with replayed hard negatives and dropout."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    common, steps, middle = (TRAIN, f"{TINY}:stage1"), 24, 12
    changes = [
        f"steps={steps}",
        f"evaluation.every={middle}",
        "evaluation.rerank=4",
        "evaluation.sources=({'kind': 'shapes', 'split': 'validation', 'size': 12},)",
        "evaluation.batch_size=8",
    ]
    run(*common, whole, *changes, "logging.negatives=True", devices=2 * DEVICES)
    changes.append(f"replay={whole / 'negatives.jsonl'}")
    processes = start_two(*common, moved, *changes)
    wait_for_step(middle + 5, moved, processes[0])
    for process in processes:
        process.kill()
    assert codes_of(processes, moved) == [-signal.SIGKILL] * 2
    run(*common, moved, *changes, "mesh.fsdp=2", devices=DEVICES)
    scored = [
        {line["step"]: line for line in read_metrics(path) if "loss" not in line}
        for path in (moved, whole)
    ]
    assert scored[0].keys() == scored[1].keys() == {middle, steps}
    for step, line in scored[1].items():
        for name, value in line.items():
            np.testing.assert_allclose(scored[0][step][name], value, rtol=1e-4)
    assert_same_losses(moved, whole, steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("node1", 2, 0), "'node1', but must be HOST:PORT"),
        (("node1:1234", 2, 2), r"process_id is 2, but must be in 0 .. 1"),
    ],
)
def test_invalid_arguments_of_join(arguments, message):
    with pytest.raises(ValueError, match=message):
        hosts.join(*arguments)


def test_without_a_cluster_the_error_names_the_flags(tmp_path):
    process = start(TRAIN, f"{TINY}:stage1", tmp_path / "run", flags=["--multihost"])
    assert process.wait(TIMEOUT_S) == 1
    log = log_of(tmp_path / "run").read_text()
    assert "error: cannot start several processes: JAX detects no SLURM" in log
    assert "--coordinator_address HOST:PORT --num_processes N" in log
    assert log.count("\n") == 1 and not (tmp_path / "run").exists()


def test_arguments_from_the_environment(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is 'two', but must"):
        hosts.join()
