"""Runs whose weights, tokenizer and data are on the hub read the same files again."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save

from blip2_jax.data import hub
from blip2_jax.data.text.tokenizer_files import tokenizer_directory
from blip2_jax.inference.load import open_model
from blip2_jax.nn.trees import flatten
from blip2_jax.training.hub_names import pin_hub_names
from blip2_jax.training.setup import set_up
from blip2_jax.training.tasks import make_task
from blip2_jax.training.train_config import default_config, read_config
from tests.support.hub_server import hub_server
from tests.support.tiny_runs import tiny_config


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub_server(monkeypatch, tmp_path / "cache") as server:
        folder = pathlib.Path(tokenizer_directory("shapes:bert"))
        server.add("org/bert", folder)
        yield server


def test_only_paths_and_explicit_names_are_pinned(server):
    commit = server.add("org/tower", {"config.json": "{}"})
    data = server.add("org/photos", {"a.json": "[]"}, kind="dataset")
    config = default_config("stage1").unlock()
    config.frozen_sources.vision = "org/tower"
    config.init.from_weights = ("org/tower", "runs/x.pth")
    config.data.tokenizer.qformer = "shapes:bert"
    annotations = "hf://datasets/org/photos/a.json"
    config.data.train = ({"kind": "vqa", "annotations": annotations, "images": "a/b"},)
    config.logging.wandb_project = "org/tower"
    pinned, names = pin_hub_names(config, {})
    tower = f"hf://org/tower@{commit}"
    assert pinned.frozen_sources.vision == tower
    assert pinned.init.from_weights == (tower, "runs/x.pth")
    assert pinned.data.tokenizer.qformer == "shapes:bert"
    (spec,) = pinned.data.train
    assert spec["annotations"] == f"hf://datasets/org/photos@{data}/a.json"
    assert spec["images"] == "a/b"
    assert pinned.logging.wandb_project == "org/tower"
    assert names == {"org/tower": tower, annotations: spec["annotations"]}
    # A run that is continued keeps the commits that it began with.
    earlier = {"org/tower": f"hf://org/tower@{'0' * 40}"}
    again, _ = pin_hub_names(config, earlier)
    assert again.frozen_sources.vision == earlier["org/tower"]


def test_a_run_is_continued_with_the_files_that_it_began_with(
    server, tmp_path, monkeypatch
):
    config = tiny_config("stage1").unlock()
    config.data.tokenizer.qformer = "org/bert"
    config.frozen_sources.vision = "org/tower"
    arrays = {
        path: np.ones(array.shape, np.float32)
        for path, array in flatten(make_task(config).parameter_shapes()).items()
        if path.startswith("visual_encoder/")
    }
    first = server.add("org/tower", {"model.safetensors": save(arrays)})
    run = set_up(config, tmp_path / "run")
    run.checkpoints.save(0, run.trees(), {})
    run.checkpoints.close()
    stored = read_config(tmp_path / "run")
    assert stored.frozen_sources.vision == f"hf://org/tower@{first}"
    sources = json.loads((tmp_path / "run" / "sources.json").read_text())
    assert set(sources["hub"]) == {"org/bert", "org/tower"}

    others = {path: 2 * array for path, array in arrays.items()}
    server.add("org/tower", {"model.safetensors": save(others)})
    hub.forget_repositories()  # another process continues the run
    again = set_up(config, tmp_path / "run")
    again.checkpoints.close()
    assert again.report[2] == "continued from checkpoint 0"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.forget_repositories()
    model = open_model(tmp_path / "run")
    path = next(iter(arrays))
    np.testing.assert_array_equal(model.arrays[path], arrays[path])
