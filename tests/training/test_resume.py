"""A run killed by `kill -9` continues with the losses of an uninterrupted run."""

import numpy as np
import pytest

from benchmarks.soak import (
    TRAIN,
    Outcome,
    differences,
    last_step,
    losses,
    memory_early_and_late,
    run,
    run_and_kill,
    soak,
)
from tests.support.processes import SUPPORT

TOY = SUPPORT / "toy_task.py"
TINY = SUPPORT / "tiny_experiment.py"


def assert_same_run(left, right, step) -> None:
    """Compare all losses and parameters bit for bit."""
    assert list(losses(left)) == list(range(1, step + 1))
    assert not differences(left, right, step)


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


def test_a_leak_below_an_early_peak_is_noticed():
    """The leak is 0.5 GB; compilation used 3 GB more at the start."""
    held = np.full(60, 2.0)
    held[:5] += 3
    leaking = held + np.linspace(0, 0.5, 60)

    def outcome(memory):
        lines = [{"step": 0}, *({"host_memory_gb": value} for value in memory)]
        return Outcome(0, 0, [], memory_early_and_late(lines))

    assert outcome(held).is_well()
    assert not outcome(leaking).is_well()
    with pytest.raises(ValueError, match="in 2 log lines"):
        outcome(held[:2])


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_where_an_undisturbed_one_does(tmp_path):
    outcome = soak(tmp_path, f"{TINY}:stage1", steps=60, kill_every=20)
    assert outcome.kills == 2 and outcome.damaged > 20
    assert outcome.is_well(), (outcome.differences, outcome.memory_gb)
    assert (tmp_path / "killed" / "damaged" / str(outcome.damaged)).is_dir()
