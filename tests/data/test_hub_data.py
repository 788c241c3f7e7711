"""Data sets of the hub: fetched by the sources, detected, and named with a commit."""

import io
import json
import tarfile

import pytest
from PIL import Image

from blip2_jax.data.hub_errors import HubError
from blip2_jax.data.sources.layouts import detect_layout
from blip2_jax.data.sources.registry import build_source
from tests.support.hub_server import hub_server


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub_server(monkeypatch, tmp_path / "cache") as server:
        yield server


def tar_of(*names):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for name in names:
            file.addfile(tarfile.TarInfo(name))
    return content.getvalue()


def test_data_of_the_hub(server, capfd):
    files = {f"data/{n}.tar": tar_of(f"{n}.txt", f"{n}.jpg") for n in range(2)}
    server.add("org/photos", files | {"README.md": "x"}, kind="dataset")
    paths = ["hf://datasets/org/photos/data/*.tar"]
    assert len(build_source({"kind": "tars", "paths": paths})) == 2
    assert set(server.fetched()) == set(files)
    assert capfd.readouterr().err == ""


def jpeg(shade):
    content = io.BytesIO()
    Image.new("L", (20, 20), shade).save(content, "jpeg")
    return content.getvalue()


def test_the_layout_of_a_data_set_is_detected(server):
    rows = [{"file_name": f"{n}.jpg", "text": f"photo {n}"} for n in range(3)]
    files = {f"train/{n}.jpg": jpeg(n) for n in range(3)}
    files["train/metadata.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows)
    commit = server.add("org/photos", files | {"README.md": "x"}, kind="dataset")
    layout = detect_layout("hf://datasets/org/photos")
    assert layout.captions == 3
    pinned = f"hf://datasets/org/photos@{commit}"
    assert layout.spec["path"].startswith(pinned)
    source = build_source(layout.spec)
    assert list(source.record(1).captions) == ["photo 1"]


def test_a_data_set_that_is_not_there(server):
    message = r"^http://127.* has no dataset repository 'org/none'"
    with pytest.raises(HubError, match=message):
        detect_layout("hf://datasets/org/none")
