"""Names of the hub: what they mean, what is fetched, and how it fails."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save

from blip2_jax.convert.detect import kind_of
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.data import hub
from blip2_jax.data.hub_errors import HubError, HubName
from blip2_jax.data.text.tokenizer_files import tokenizer_directory
from blip2_jax.data.text.tokenizers import load_tokenizer
from tests.support.hub_server import hub_server

NAME = "org/model"
VISION = {"visual.blocks.0.attn.q_bias": np.ones((4, 3), np.float16)}
TEXT = {"text.embedding": np.zeros((2000, 64), np.float32)}


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub_server(monkeypatch, tmp_path / "cache") as server:
        yield server


def sharded():
    """Return the files of a model in two shards, with what real repositories add."""
    shards = {"model-1.safetensors": VISION, "model-2.safetensors": TEXT}
    weight_map = {name: file for file, arrays in shards.items() for name in arrays}
    return {
        "config.json": "{}",
        "README.md": "A model.",
        "modeling.py": "raise SystemExit",
        "pytorch_model.bin": b"pickled" * 1000,
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}),
        **{file: save(arrays) for file, arrays in shards.items()},
    }


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("org/model", HubName("org/model")),
        ("org/model@v1", HubName("org/model", "v1")),
        ("hf://org/model", HubName("org/model")),
        ("hf:/org/model", HubName("org/model")),  # as pathlib writes it
        ("hf://org/model@v1/a/b.pth", HubName("org/model", "v1", "a/b.pth")),
        ("hf://org/m@refs/pr/3/x", HubName("org/m", "refs/pr/3", "x")),
        ("hf://datasets/org/d@v1/x", HubName("org/d", "v1", "x", "dataset")),
        ("model", None),
        ("runs/a/b", None),
        ("./org/model", None),
        ("/org/model", None),
        ("org/model.pth", None),
        ("shapes:opt", None),
    ],
)
def test_a_name_is_told_from_a_path(spec, expected):
    assert hub.parse_name(spec) == expected


def test_a_local_path_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    assert hub.parse_name("org/model") is None  # a typing error in a local path
    assert hub.parse_name("hf://org/model") is not None


def test_a_malformed_name_is_explained():
    with pytest.raises(HubError, match=r"'hf://model' is no name .*hf://ORG/NAME"):
        hub.parse_name("hf://model")


def test_only_the_shards_that_are_read_are_fetched(server):
    server.add(NAME, sharded())
    source = CheckpointFiles(NAME)
    assert kind_of(source) == "eva"
    assert source.shape("text.embedding") == (2000, 64)  # from the header alone
    assert source.dtype("text.embedding") == np.float32
    (name,) = VISION
    np.testing.assert_array_equal(source[name], VISION[name])
    fetched = server.fetched()
    assert set(fetched) == {
        "config.json",
        "model.safetensors.index.json",
        "model-1.safetensors",
        "model-2.safetensors",
    }
    # Of the other shard, the request for the header.
    assert fetched["model-2.safetensors"] <= 100_001 < len(save(TEXT))


def test_of_a_single_file_the_kind_is_known_before_it_is_fetched(server):
    content = save(TEXT)
    config = '{"model_type": "llama"}'
    server.add(NAME, {"model.safetensors": content, "config.json": config})
    message = r"^org/model is none of: .*; its config.json says 'llama', .* text.embed"
    with pytest.raises(SourceError, match=message):
        kind_of(CheckpointFiles(NAME))
    assert server.fetched()["model.safetensors"] < len(content)


def test_cached_files_need_no_request(server):
    server.add(NAME, sharded())
    source = CheckpointFiles(NAME)
    (name,) = VISION
    source[name]
    hub.forget_repositories()  # as in another process
    server.requests.clear()
    np.testing.assert_array_equal(CheckpointFiles(NAME)[name], VISION[name])
    assert not server.requests


def test_offline_the_cache_is_enough(server, monkeypatch):
    server.add(NAME, sharded())
    (name,) = VISION
    CheckpointFiles(NAME)[name]
    hub.forget_repositories()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = CheckpointFiles(NAME)
    assert source[name].shape == (4, 3)
    with pytest.raises(HubError, match=r"org/model are not all in the cache.*OFFLINE"):
        source["text.embedding"]


def test_a_pinned_name_keeps_its_files(server):
    first = server.add(NAME, {"config.json": '{"version": 1}'})
    pinned = hub.pinned(NAME)
    assert pinned == f"hf://org/model@{first}"
    server.add(NAME, {"config.json": '{"version": 2}'})
    hub.forget_repositories()
    assert json.loads((hub.local_path(pinned) / "config.json").read_text()) == {
        "version": 1
    }
    assert hub.pinned(pinned) == pinned
    assert hub.pinned("runs/a/b") == "runs/a/b"


def test_a_revision_is_a_branch_a_tag_or_a_commit(server):
    server.add(NAME, {"config.json": "{}"})
    commit = server.add(NAME, {"config.json": '{"tag": 1}'}, branch="v1")
    for revision in ("v1", commit):
        folder = hub.local_path(f"{NAME}@{revision}")
        assert (folder / "config.json").read_text() == '{"tag": 1}'


def test_a_file_or_a_folder_of_data_is_fetched_alone(server):
    files = {"a/1.json": "[]", "a/2.jpg": "x", "b/[3].jpg": "y"}
    files["a/load.py"] = "raise SystemExit"
    server.add("org/photos", files, kind="dataset")
    path = hub.local_path("hf://datasets/org/photos/a")
    assert sorted(p.name for p in path.iterdir()) == ["1.json", "2.jpg"]
    assert set(server.fetched()) == {"a/1.json", "a/2.jpg"}
    assert hub.local_path("hf://datasets/org/photos/b/[3].jpg").read_text() == "y"
    with pytest.raises(HubError, match=r"no 'c'; it has 4 files: a/1.json"):
        hub.local_path("hf://datasets/org/photos/c")


def test_of_a_tokenizer_only_its_files_are_fetched(server):
    folder = pathlib.Path(tokenizer_directory("shapes:opt"))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    server.add(NAME, files | sharded())
    tokenizer = load_tokenizer(NAME, language_model=True)
    expected = load_tokenizer("shapes:opt", language_model=True)
    assert tokenizer.encode_words("red") == expected.encode_words("red")
    small = {"config.json", "model.safetensors.index.json"}
    assert set(server.fetched()) == set(files) | small


def fail(server, monkeypatch, spec=NAME):
    with pytest.raises(HubError) as error:
        CheckpointFiles(spec)
    return str(error.value)


def test_no_such_repository_names_what_was_typed(server, monkeypatch):
    message = fail(server, monkeypatch, "runs9/stage1")
    assert message.startswith("no file or folder 'runs9/stage1', and http://127")
    assert "no model repository 'runs9/stage1'" in message
    assert "hf auth login" in message
    monkeypatch.setenv("HF_TOKEN", "hf_good")  # the hub then says 404 in place of 401
    hub.forget_repositories()
    assert "no model repository" in fail(server, monkeypatch, "runs9/stage1")


def test_no_such_revision(server, monkeypatch):
    server.add(NAME, {"config.json": "{}"})
    assert "has no revision 'v9'" in fail(server, monkeypatch, f"hf://{NAME}@v9")


def test_a_gated_repository_needs_its_terms_accepted(server, monkeypatch):
    server.add(NAME, sharded(), restricted="gated")
    message = fail(server, monkeypatch)
    assert message.startswith(f"org/model is gated: accept its terms at {server.url}")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert "text.embedding" in CheckpointFiles(NAME)


def test_a_private_repository_needs_a_token(server, monkeypatch):
    server.add(NAME, sharded(), restricted="private")
    assert "if it is private, log in" in fail(server, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert "text.embedding" in CheckpointFiles(NAME)


def test_a_token_that_is_not_valid(server, monkeypatch):
    server.add(NAME, sharded())
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    assert "refuses access (401), because the token is invalid" in fail(
        server, monkeypatch
    )


def test_without_network(server, monkeypatch):
    server.close()
    message = fail(server, monkeypatch)
    assert "cannot be reached for org/model" in message
    assert "check the network" in message


def test_a_hub_that_is_down(server, monkeypatch):
    server.failure = 501  # statuses of 500 and 503 are tried again for half a minute
    assert "answers with status 501" in fail(server, monkeypatch)


def test_offline_and_not_cached(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = fail(server, monkeypatch)
    assert message.startswith(
        "no file or folder 'org/model', and the files of org/model"
    )
    assert "HF_HUB_OFFLINE is set" in message
    assert not server.requests


def test_a_repository_without_weights(server, monkeypatch):
    server.add(NAME, {"config.json": "{}", "tf_model.h5": "x"})
    with pytest.raises(SourceError, match=r"no weights that this package.*tf_model.h5"):
        CheckpointFiles(NAME)


def test_a_repository_with_pickles_alone_is_read(server):
    torch = pytest.importorskip("torch")
    import io

    content = io.BytesIO()
    torch.save({"layer.weight": torch.ones(2, 3)}, content)
    server.add(NAME, {"pytorch_model.bin": content.getvalue(), "tf_model.h5": "x"})
    np.testing.assert_array_equal(
        CheckpointFiles(NAME)["layer.weight"], np.ones((2, 3))
    )
    assert set(server.fetched()) == {"pytorch_model.bin"}


def test_the_environment_is_respected(server, tmp_path):
    server.add(NAME, {"config.json": "{}"}, restricted="private")
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_good",
        "HF_HUB_OFFLINE": "0",
    }
    environment.pop("HF_HUB_CACHE", None)
    code = f"from blip2_jax.data import hub; print(hub.local_path('{NAME}'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "home" / "hub"))
    assert done.stderr == ""  # no progress bar where there is no terminal
