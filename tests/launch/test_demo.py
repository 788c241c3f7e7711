"""`launch/demo.py` from end to end, with hardly any training."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_demo_trains_examines_and_reports(tmp_path):
    command = [
        sys.executable, "launch/demo.py", f"--workdir={tmp_path}", "--steps=0.005",
        "--scenes=8",
    ]  # fmt: skip
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "image to text, first of 8" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["seconds"]) == {"stage1", "stage2", "evaluation", "all"}
    assert all(0 <= score <= 1 for score in results["scores"].values())
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") > 20
    assert page.count("<svg") == 3
