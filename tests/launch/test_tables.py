"""`launch/tables.py`: everything in few steps, killed and continued."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.shapes_tables import RUNS, exams

LAUNCH = Path(__file__).parents[2] / "launch" / "tables.py"


def launch(workdir, *more):
    return subprocess.run(
        [sys.executable, str(LAUNCH), f"--workdir={workdir}", *more],
        capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def test_tables_of_nothing_are_empty(tmp_path):
    done = launch(tmp_path, "--report")
    assert done.returncode == 0, done.stderr
    assert "Table 2" in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "figure5.svg").exists()


def test_a_training_that_is_not_there_is_named(tmp_path):
    done = launch(tmp_path, "--one", "opt_large")
    assert done.returncode == 1
    assert "no run 'opt_large'; there are stage1," in done.stderr


@pytest.mark.slow
def test_the_quick_tables_are_complete_and_nothing_is_made_twice(tmp_path):
    alone = launch(tmp_path, "--quick", "--one", "stage1")
    assert alone.returncode == 0, alone.stderr
    record = tmp_path / "seed_0" / "stage1" / "retrieval_heldout.json"
    made = record.stat().st_mtime_ns
    done = launch(tmp_path, "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RUNS) - 1} of {len(RUNS)} trainings to do" in done.stdout
    assert record.stat().st_mtime_ns == made
    for name in RUNS:
        for exam in exams(name):
            file = tmp_path / "seed_0" / name / f"{exam.replace(',', '_')}.json"
            assert json.loads(file.read_text())["scores"], file
    page = (tmp_path / "tables.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| OPT with stage 1")]
    assert len(rows) == 2 and all("|  |" not in row for row in rows)
    again = launch(tmp_path, "--quick")
    assert f"0 of {len(RUNS)} trainings to do" in again.stdout
