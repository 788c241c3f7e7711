"""Outputs of conversions: complete or absent, and nothing of others is removed."""

import dataclasses
import resource

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


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a model of transformers."""
    path = tmp_path_factory.mktemp("hf") / "theirs"
    peers.write_huggingface(path, "opt")
    return path


@pytest.fixture
def full_disk():
    """Limit the size of files; like a full disk, the limit fails in `write`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("format_name", ["blip2_jax", "huggingface", "lavis"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    source, tmp_path, capsys, full_disk, format_name
):
    output = tmp_path / "out" / ("x.pth" if format_name == "lavis" else "x")
    arguments = ["--source", str(source), "--to", format_name]
    assert convert.main([*arguments, "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert f"; {output} was not written" in error
    assert "File too large" in error or "maybe the disk is full" in error  # torch
    assert not list(output.parent.iterdir())


def test_settings_that_lavis_lacks(source, tmp_path):
    model = open_model(source)
    qformer = dataclasses.replace(model.config.qformer, activation="relu")
    config = dataclasses.replace(model.config, qformer=qformer)
    with pytest.raises(ValueError, match="activation is relu; LAVIS has gelu only"):
        write_lavis(dataclasses.replace(model, config=config), tmp_path / "x.pth")


def test_the_command_names_what_is_in_the_way(source, tmp_path, capsys):
    (tmp_path / "out.unfinished").mkdir()
    arguments = ["--source", str(source), "--to", "blip2_jax"]
    assert convert.main([*arguments, "--output", str(tmp_path / "out")]) == 1
    assert "out.unfinished is in the way" in capsys.readouterr().err
