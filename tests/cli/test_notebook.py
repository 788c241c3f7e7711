"""The notebook runs from its first cell to its last, with few training steps."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("BLIP2_JAX_NOTEBOOK_STEPS", "0.005")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    book = nbformat.read(ROOT / "launch" / "blip2_colab.ipynb", as_version=4)
    for cell in book.cells:
        assert not cell.get("outputs"), "the notebook is kept without outputs"
        here = repr(str(tmp_path / "run"))
        cell.source = cell.source.replace('"runs/notebook"', here)
    nbclient.NotebookClient(
        book, timeout=600, resources={"metadata": {"path": str(ROOT / "launch")}}
    ).execute()
    printed = "".join(
        output.get("text", "")
        for cell in book.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert "caption:" in printed and "cosine" in printed
    pictures = [
        output
        for cell in book.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
