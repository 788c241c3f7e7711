"""`blip2-jax plan`: its errors, and the numbers that it prints and writes."""

import json
import pathlib
import subprocess
import sys

import pytest

from blip2_jax.cli import plan

ROOT = pathlib.Path(__file__).parents[2]
TINY = ROOT / "tests" / "support" / "tiny_experiment.py"


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, (), "--config is missing"),
        (2, (f"--config={TINY}",), "--topology is missing, e.g. --topology v5e:16x16"),
        (2, (f"--config={TINY}", "--topology=v9:2x2"), "'v9:2x2'; expected v4:AxBxC"),
        (2, (f"--config={TINY}", "--topology=cpu:8", "--mfu=40"), "--mfu is 40.0"),
        (
            2,
            (f"--config={TINY}", "--topology=cpu:8", "--sweep=size"),
            "cannot sweep 'size'",
        ),
        (
            2,
            (f"--config={TINY}", "--config.stpes=3", "--topology=cpu:8"),
            "config has no key 'stpes'; did you mean 'steps'?",
        ),
        (
            1,
            (f"--config={TINY}", "--config.batch_size=12", "--topology=cpu:8"),
            "batch size 12 does not divide over 8 devices",
        ),
        (
            1,
            (f"--config={TINY}", "--config.mesh.fsdp=3", "--topology=cpu:8"),
            "does not cover 8 devices",
        ),
    ],
)
def test_one_sentence(capsys, monkeypatch, code, arguments, message):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert plan.main([*arguments]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_more_devices_than_this_process_has(tmp_path):
    """The command makes virtual devices and opens no weights."""
    file = tmp_path / "plan.json"
    command = [
        sys.executable,
        "launch/plan.py",
        f"--config={TINY}:opt",
        "--topology=cpu:4",
        "--config.frozen_sources.language_model=/no/weights",
        f"--json={file}",
        "--config.mesh.fsdp=2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "data 2 x fsdp 2 x tensor 1" in done.stdout
    (numbers,) = json.loads(file.read_text())
    assert numbers["fits"] is None and numbers["devices"] == 4
    assert numbers["memory"]["frozen"] > 0
    assert numbers["collectives_by_kind"]["all-gather"]["count"] > 0


@pytest.mark.slow
def test_a_sweep(tmp_path):
    file = tmp_path / "plan.json"
    command = [
        sys.executable,
        "launch/plan.py",
        f"--config={TINY}:opt",
        "--topology=cpu:2",
        "--sweep=remat",
        f"--json={file}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plans = json.loads(file.read_text())
    assert [plan["remat"] for plan in plans] == ["none", "full", "dots"]
    none, full, dots = (plan["flops"] for plan in plans)
    assert none < dots < full  # fewer stored activations, more FLOPs
