"""What commands write to stderr where neither PyTorch nor TensorFlow is installed."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from tests.support.processes import ROOT, SUPPORT
from tests.support.tiny_runs import make_run

# Imported by the interpreter at its start.
HIDE_LIBRARIES = """
import importlib.util
find_spec = importlib.util.find_spec
def find_other_spec(name, package=None):
    if name.split(".")[0] in ("torch", "torchvision", "tensorflow"):
        return None
    return find_spec(name, package)
importlib.util.find_spec = find_other_spec
"""
PROGRAM = """
import json, sys
from blip2_jax.cli.main import main
for words in json.load(sys.stdin):
    assert main(words) == 0, words
"""
SHORT = ["--max_new_tokens", "2"]
DATA = json.dumps({"kind": "shapes", "split": "heldout", "size": 2})


def stderr_of(directory: pathlib.Path, commands: list[list[str]]) -> list[str]:
    """Run commands in one new process; returns the lines that it wrote to stderr."""
    hidden = directory / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDE_LIBRARIES)
    paths = [str(hidden), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        input=json.dumps(commands),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_commands_on_a_model(tmp_path):
    make_run(tmp_path / "run", "stage2")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.jpg")
    caption = ["caption", "--image", "a.jpg", *SHORT, "--model"]
    evaluate = ["evaluate", "--model=run", "--task=captioning", f"--data={DATA}"]
    evaluate += ["--config.decoding.max_new_tokens=2", "--out=r.json"]
    lines = stderr_of(
        tmp_path,
        [
            [*caption, "run"],
            [*caption, "run", "--question", "what is red?"],
            ["convert", "--model=run", "--to=huggingface", "--out=exported"],
            ["convert", "--model=exported", "--to=blip2_jax", "--out=converted"],
            evaluate,
            ["report", "r.json", "--out=report"],
        ],
    )
    assert len(lines) == 3 and all(line.startswith("Compiling… (") for line in lines)


@pytest.mark.slow
def test_training(tmp_path):
    options = ["--workdir=run", "--config.steps=5", "--config.data.workers=0"]
    config = f"--config={SUPPORT / 'tiny_experiment.py'}:stage1"
    lines = stderr_of(tmp_path, [["train", config, *options]])
    starts = [line.split()[0] for line in lines]
    assert starts[:4] == ["devices:", "parameters:", "from", "Compiling…"]
    assert starts[4] == "compiled" and lines[5].lstrip().startswith("step ")
    assert starts[-1] == "finished"
    assert all(start[0].isdigit() or start == "evaluation" for start in starts[6:-1])
