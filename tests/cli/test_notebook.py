"""The notebook runs from its first cell to its last, and keeps its outputs."""

import os
import re
import subprocess
import sys
import time

import pytest

from tests.support.documentation import ROOT
from tests.support.notebook import NOTEBOOK, prepare, run_notebook

WARNING = re.compile(r"warning|traceback|error:", re.IGNORECASE)
MAX_BYTES = 400_000


@pytest.fixture(scope="module")
def stored():
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(book):
    """Return all outputs of a notebook."""
    return [
        output
        for cell in book.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]


def check_outputs(book):
    """Check that outputs hold pictures and captions, and no warnings."""
    texts = [output.get("text", "") for output in outputs(book)]
    assert "caption: " in "".join(texts) and "cosine" in "".join(texts)
    assert not [text for text in texts if WARNING.search(text)]
    assert not [o for o in outputs(book) if o.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs(book)) >= 5


def test_stored_outputs_are_shown_where_nothing_runs(stored):
    check_outputs(stored)
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    text = NOTEBOOK.read_text()
    assert str(ROOT) not in text and "colab-badge.svg" in text


@pytest.mark.slow
def test_every_cell_runs_within_three_minutes(tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("BLIP2_JAX_NOTEBOOK_STEPS", "3")
    start = os.times()
    book = run_notebook(prepare(tmp_path / "clone"))
    spent = sum(os.times()[2:4]) - sum(start[2:4])  # of the kernel; others may wait
    check_outputs(book)
    assert spent < 360, "more than three minutes on two cores"


def test_outside_of_a_clone_the_first_cell_says_what_to_set(stored, tmp_path):
    cell = next(cell for cell in stored.cells if cell.id == "install")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", cell.source],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and time.monotonic() - began < 60
    assert done.stderr.strip().endswith(
        "set REPOSITORY to the address of blip2_jax, and run this cell again"
    )


def test_the_first_cell_clones_and_reports_failures(stored, tmp_path):
    cell = next(cell for cell in stored.cells if cell.id == "install")
    missing = tmp_path / "no_such_repository"
    source = re.sub('REPOSITORY = "[^"]*"', f'REPOSITORY = "{missing}"', cell.source)
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "git clone" in done.stderr and "failed:" in done.stderr
    origin = tmp_path / "origin"
    (origin / "blip2_jax").mkdir(parents=True)
    (origin / "blip2_jax" / "__init__.py").write_text("")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(origin)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    work = tmp_path / "work"
    work.mkdir()
    source = re.sub('REPOSITORY = "[^"]*"', f'REPOSITORY = "{origin}"', cell.source)
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=work, capture_output=True, text=True
    )
    assert done.stdout.strip().endswith("ready in blip2_jax"), done.stderr
