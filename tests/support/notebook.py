"""Run the notebook; `python -m tests.support.notebook` also keeps its outputs in it."""

import os
import pathlib

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


def strip(book) -> None:
    """Remove what differs from run to run: times of execution."""
    for cell in book.cells:
        cell.metadata.pop("execution", None)


if __name__ == "__main__":
    import tempfile

    import nbformat

    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        run = run_notebook(prepare(pathlib.Path(folder) / "blip2_jax_clone"))
    strip(run)
    nbformat.write(run, NOTEBOOK)
