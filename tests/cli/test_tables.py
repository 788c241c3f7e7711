"""`blip2-jax tables`: the order of trainings; none is run twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blip2_jax.cli.tables import with_sources
from blip2_jax.configs.shapes_tables import RUNS, exams

LAUNCH = Path(__file__).parents[2] / "launch" / "tables.py"


def launch(workdir, *more):
    return subprocess.run(
        [sys.executable, str(LAUNCH), f"--workdir={workdir}", *more],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def test_tables_of_nothing_are_empty(tmp_path):
    done = launch(tmp_path, "--report")
    assert done.returncode == 0, done.stderr
    assert "Table 2" in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "figure5.svg").exists()


@pytest.mark.parametrize("flag", ["--one", "--runs"])
def test_an_unknown_run_is_named(tmp_path, flag):
    done = launch(tmp_path, flag, "opt_large")
    assert done.returncode == 2
    assert "no run 'opt_large'; there are stage1," in done.stderr


def test_trainings_follow_their_sources():
    assert with_sources(["questions_opt", "t5"]) == [
        "stage1",
        "opt",
        "t5",
        "questions_opt",
    ]
    assert with_sources([]) == list(RUNS)


@pytest.mark.slow
def test_runs_are_evaluated_and_none_is_run_twice(tmp_path):
    alone = launch(tmp_path, "--quick", "--one", "stage1")
    assert alone.returncode == 0, alone.stderr
    record = tmp_path / "seed_0" / "stage1" / "retrieval_heldout.json"
    time = record.stat().st_mtime_ns
    some = ("--quick", "--runs", "questions_opt,opt_without_stage1")
    done = launch(tmp_path, *some)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 4 trainings to do" in done.stdout
    assert record.stat().st_mtime_ns == time
    for name in ("opt", "opt_without_stage1", "questions_opt"):
        for exam in exams(name):
            file = tmp_path / "seed_0" / name / f"{exam.replace(',', '_')}.json"
            assert json.loads(file.read_text())["scores"], file
    rows = (tmp_path / "tables.md").read_text().splitlines()
    for label in ("OPT with stage 1", "OPT without stage 1", "OPT without"):
        found = [row for row in rows if row.startswith(f"| {label} |")]
        assert found and all("|  |" not in row for row in found), label
    assert any(row.startswith("| OPT with stage 1 less ") for row in rows)
    assert "0 of 4 trainings to do" in launch(tmp_path, *some).stdout
