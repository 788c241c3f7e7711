"""`blip2-jax capfilt`: a command that is killed and run again writes the same tars."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from blip2_jax.cli import capfilt
from blip2_jax.data.sources.registry import build_source
from tests.support import capfilt_models

LAUNCH = pathlib.Path(__file__).parents[2] / "launch" / "capfilt.py"
SHAPES = {"kind": "shapes", "split": "train", "size": 8, "count": 1}


def options(out, **more):
    values = {
        "data": json.dumps(SHAPES),
        "captioner": "shapes_stage1",
        "ranker": "shapes_stage1",
        "out": out,
        "num_captions": 2,
        "max_new_tokens": 8,
        "batch_size": 4,
        "processes": 1,
    }
    return [f"--{name}={value}" for name, value in (values | more).items()]


def tar_bytes(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.tar"))}


def run_and_kill(arguments, out):
    """Run the command and kill it when a shard is finished but not all are."""
    process = subprocess.Popen(
        [sys.executable, str(LAUNCH), *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(out.glob("*.report.json")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors


def test_tars_and_report(tmp_path, capsys):
    assert capfilt.main(options(tmp_path / "out", shard_size=5)) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'out'}/*.tar: 2 of 2 shards" in out
    assert "8 of 8 images; " in out and "of 8 web captions are kept" in out
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    tars = {
        "kind": "tars",
        "paths": f"{tmp_path / 'out'}/*.tar",
        "index_directory": str(tmp_path / "index"),
    }
    assert len(build_source(tars)) == 8


@pytest.mark.slow
@pytest.mark.parametrize("data", ["shapes", "flickr8k"])
def test_a_killed_command_continues_with_the_same_bytes(data, tmp_path, request):
    """With a tiny BLIP and CLIP of random weights."""
    spec = SHAPES | {"size": 200}
    if data == "flickr8k":
        photos = request.getfixturevalue("testdata") / "data/flickr8k"
        spec = {
            "kind": "tars",
            "paths": str(photos / "extra-*.tar"),
            "index_directory": str(tmp_path / "index"),
        }
    capfilt_models.write_blip(tmp_path / "blip")
    capfilt_models.write_clip(tmp_path / "clip")
    more = {
        "data": json.dumps(spec),
        "captioner": tmp_path / "blip",
        "ranker": tmp_path / "clip",
        "shard_size": 10,
    }
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    run_and_kill(options(killed, **more), killed)
    count = -(-len(build_source(spec)) // 10)
    assert 0 < len(tar_bytes(killed)) < count
    assert capfilt.main(options(killed, **more)) == 0
    assert capfilt.main(options(whole, **more)) == 0
    assert len(tar_bytes(whole)) == count
    assert tar_bytes(killed) == tar_bytes(whole)
    assert not list(killed.glob(".*"))


def test_wrong_command_lines(tmp_path, capsys):
    for more, message in (
        ({"keep": 0}, "--keep must be at least 1"),
        ({"score": "cosine"}, "invalid choice: 'cosine'"),
        ({"data": "[]"}, "--data is missing"),
        ({"top_p": 0}, "top_p=0.0"),
    ):
        assert capfilt.main(options(tmp_path / "out", **more)) != 0
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.tar"))
