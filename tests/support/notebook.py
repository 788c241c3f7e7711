"""Run the notebook; `python -m tests.support.notebook` also keeps its outputs in it."""

import os
import pathlib
import re
import subprocess

from tests.support.documentation import ROOT

NOTEBOOK = ROOT / "launch" / "blip2_colab.ipynb"


def run_notebook(directory: pathlib.Path):
    """Run all cells in a directory beside which the package lies.

    Args:
      directory: working directory, whose `blip2_jax` is the package. The cells write
        to `runs/` in it.

    Returns:
      The notebook with its outputs.
    """
    import nbclient
    import nbformat

    book = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(directory)}}
    nbclient.NotebookClient(book, timeout=600, resources=resources).execute()
    return book


def prepare(directory: pathlib.Path) -> pathlib.Path:
    """Make a directory that looks like a clone."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "blip2_jax").symlink_to(ROOT / "blip2_jax")
    return directory


def keep(book) -> None:
    """Write a notebook with its outputs, and the address that the clone has."""
    import nbformat

    for cell in book.cells:
        cell.metadata.pop("execution", None)  # times
    text = nbformat.writes(book)
    if address := github_address():
        text = text.replace("OWNER/blip2_jax", address)
    NOTEBOOK.write_text(text + "\n")


def github_address() -> str:
    """Return OWNER/NAME of the clone's origin on GitHub; "" if it has none there."""
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    url = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    found = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?$", url)
    return found[1] if found else ""


if __name__ == "__main__":
    import tempfile

    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        run = run_notebook(prepare(pathlib.Path(folder) / "blip2_jax"))
    keep(run)
