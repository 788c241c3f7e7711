"""Commands whose model, data, weights, tokenizer and output are on an object store."""

import json

import numpy as np
import pytest

from blip2_jax.cli import convert, evaluate, prepare
from blip2_jax.data.sources.registry import build_source
from blip2_jax.data.text.tokenizer_files import tokenizer_directory
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.inference.load import load
from blip2_jax.nn.trees import flatten
from blip2_jax.parallel.files import read_json
from blip2_jax.parallel.paths import as_path
from blip2_jax.training.setup import set_up
from tests.support.generated_data import encoded, picture, tars_spec
from tests.support.tiny_runs import make_run, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Make a stage-2 run whose captions depend on the image; return its directory."""
    directory = tmp_path_factory.mktemp("stage2") / "run"
    make_run(directory, "stage2", factor=30)
    return directory


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Use a cache directory of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def captions(model):
    images = [np.asarray(picture(number, 32, 32)) for number in range(4)]
    return load(model).caption(images, max_new_tokens=6)


def test_runs_and_converted_folders_load_from_a_store(s3, run):
    expected = captions(run)
    assert len(set(expected)) > 1
    stored = s3.put(run, "runs/stage2")
    assert captions(stored) == expected
    for name in ("blip2_jax", "huggingface"):
        out = f"{s3.root}/models/{name}"
        assert convert.main(["--model", stored, "--to", name, "--out", out]) == 0
        assert captions(out) == expected


def test_evaluation_reads_and_writes_a_store(s3, run, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(encoded(picture(number, 32, 32)))
        (folder / f"{number}.txt").write_text(f"a thing {number}")
    records = []
    for model, data, out in (
        (str(run), str(folder), str(tmp_path / "local.json")),
        (
            s3.put(run, "runs/stage2"),
            s3.put(folder, "photos"),
            f"{s3.root}/results/captioning.json",
        ),
    ):
        arguments = ["--model", model, "--task", "captioning", "--data", data]
        arguments += ["--config.decoding.max_new_tokens=4", "--out", out]
        assert evaluate.main([*arguments, "--config.tokenizer=python"]) == 0
        records.append(read_json(as_path(out)))
    assert records[1]["scores"] == records[0]["scores"]
    assert records[1]["records"] == 6


def test_towers_and_tokenizers_of_a_run_are_read_from_a_store(s3, tmp_path):
    run = set_up(tiny_config("stage2"), tmp_path / "first")
    arrays = {
        path: np.asarray(array)
        for path, array in flatten(run.frozen).items()
        if path.startswith("visual_encoder/")
    }
    from safetensors.numpy import save_file

    folder = tmp_path / "files"
    folder.mkdir()
    save_file(arrays, folder / "tower.safetensors")
    (folder / "words").mkdir()
    for file in tokenizer_directory("shapes:bert").iterdir():
        (folder / "words" / file.name).write_bytes(file.read_bytes())
    stored = s3.put(folder, "files")
    config = tiny_config("stage2").unlock()
    config.frozen_sources.vision = f"{stored}/tower.safetensors"
    config.data.tokenizer.qformer = f"{stored}/words"
    again = set_up(config.lock(), tmp_path / "second")
    for path, array in arrays.items():
        np.testing.assert_array_equal(flatten(again.frozen)[path], array)
    words = load_tokenizer(f"{stored}/words", language_model=False)
    known = load_tokenizer("shapes:bert", language_model=False)
    assert words.encode_words("a red circle") == known.encode_words("a red circle")


def test_prepare_copies_from_a_store_to_a_store(s3, tmp_path):
    (tmp_path / "web").mkdir()
    tars_spec(tmp_path / "web")
    data = f"{s3.put(tmp_path / 'web', 'web')}/*.tar"
    out = f"{s3.root}/prepared"
    arguments = ["--data", data, "--out", out, "--format", "tars", "--shard_size", "8"]
    assert prepare.main(arguments) == 0
    manifest = json.loads((as_path(out) / "manifest.json").read_text())
    assert manifest["kept"] == 20
    source = build_source({"kind": "tars", "paths": f"{out}/*.tar"})
    assert len(source) == 20
    assert prepare.main(arguments) == 0  # nothing is left to do
