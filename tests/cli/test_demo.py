"""`blip2-jax demo` end to end, with few training steps."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from blip2_jax.configs import shapes_stage1
from blip2_jax.training.train_config import write_config

ROOT = pathlib.Path(__file__).parents[2]


def demo(workdir, *more):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(workdir / "compiled")}
    return subprocess.run(
        [sys.executable, "launch/demo.py", f"--workdir={workdir}", *more],
        cwd=ROOT,
        env=os.environ | cache | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def test_a_directory_with_another_configuration_is_refused(tmp_path):
    (tmp_path / "stage1").mkdir()
    write_config(tmp_path / "stage1", shapes_stage1.get_config())
    done = demo(tmp_path, "--seed=7")
    assert done.returncode == 1
    assert "seed (was 0, is 7)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_demo_trains_evaluates_and_reports(tmp_path):
    """Examine the demo that `make demo` has left, or run a short one."""
    directory = ROOT / "runs" / "demo"
    if not (directory / "results.json").exists():
        directory = tmp_path
        done = demo(directory, "--steps=0.005", "--scenes=8")
        assert done.returncode == 0, done.stderr[-2000:]
        assert "image to text, first of 8" in done.stdout
        assert (directory / "examples.png").exists()
        before = done.stdout.partition("training such models")[0]
        assert "small purple triangle" in before  # the model of the package
    results = json.loads((directory / "results.json").read_text())
    assert set(results["seconds"]) == {"stage1", "stage2", "evaluation", "all"}
    assert all(0 <= score <= 1 for score in results["scores"].values())
    page = (directory / "report.html").read_text()
    assert page.count("data:image/png") > 20
    assert page.count("<svg") == 3
