"""Outputs of conversions: complete or absent, and nothing of others is removed."""

import dataclasses
import os
import pathlib
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from blip2_jax.cli import convert
from blip2_jax.convert.files.output import MARK, ShardWriter, atomic_output
from blip2_jax.convert.lavis_file import write_lavis
from blip2_jax.inference.load import open_model
from tests.support import peer_models as peers

ARRAYS = {f"a{n}": np.full((256, 256), n, np.float32) for n in range(8)}


def write(path, fail=False):
    with atomic_output(path) as folder:
        folder.mkdir()
        writer = ShardWriter(folder, limit=300_000)
        for name, array in ARRAYS.items():
            writer.add(name, array)
        if fail:
            raise KeyboardInterrupt
        writer.close()


def test_a_folder_of_the_user_is_left_alone(tmp_path):
    """A directory called OUTPUT.unfinished that no conversion made."""
    mine = tmp_path / "out.unfinished"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"out\.unfinished is in the way"):
        write(tmp_path / "out")
    assert (mine / "thesis.txt").read_text() == "precious"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_other_things_in_the_way_are_left_alone(tmp_path, kind):
    path, target = tmp_path / "out.unfinished", tmp_path / "target"
    if kind == "file":
        path.write_text("precious")
    else:
        path.symlink_to(target)
    if kind == "link":
        target.mkdir()
        (target / MARK).touch()
    with pytest.raises(FileExistsError, match="in the way"):
        write(tmp_path / "out")
    assert path.is_symlink() == (kind != "file")
    assert target.exists() == (kind == "link")


def test_what_an_interrupted_conversion_left_is_replaced(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", fail=True)
    assert list(tmp_path.iterdir()) == []
    left = tmp_path / "out.unfinished"  # of a process that was killed
    left.mkdir()
    (left / MARK).touch()
    (left / "out").mkdir()
    write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / MARK).exists()


FULL_DISK = """
    import resource, sys
    from blip2_jax.cli import convert
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    sys.exit(convert.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("format_name", ["blip2_jax", "huggingface", "lavis"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, format_name):
    """A limit on the size of files stands for the disk; both fail in `write`."""
    assert resource.RLIMIT_FSIZE is not None
    peers.write_huggingface(tmp_path / "theirs", "opt")
    output = tmp_path / "out" / ("x.pth" if format_name == "lavis" else "x")
    arguments = ["--source", tmp_path / "theirs", "--to", format_name]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK)]
        + [str(argument) for argument in [*arguments, "--output", output]],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": ""},
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(lines) == 1 and f"{output} was not written" in lines[0]
    assert not output.parent.exists() or not list(output.parent.iterdir())


def test_settings_that_lavis_lacks(tmp_path):
    peers.write_huggingface(tmp_path / "theirs", "opt")
    source = open_model(tmp_path / "theirs")
    qformer = dataclasses.replace(source.config.qformer, activation="relu")
    config = dataclasses.replace(source.config, qformer=qformer)
    with pytest.raises(ValueError, match="activation is relu; LAVIS has gelu only"):
        write_lavis(dataclasses.replace(source, config=config), tmp_path / "x.pth")


def test_the_command_names_what_is_in_the_way(tmp_path, capsys):
    peers.write_huggingface(tmp_path / "theirs", "opt")
    (tmp_path / "out.unfinished").mkdir()
    arguments = ["--source", str(tmp_path / "theirs"), "--to", "blip2_jax"]
    assert convert.main([*arguments, "--output", str(tmp_path / "out")]) == 1
    assert "out.unfinished is in the way" in capsys.readouterr().err
