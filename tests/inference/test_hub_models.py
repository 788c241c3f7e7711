"""Models of the hub: loaded, used in part, refused, converted and pushed."""

import json

import jax
import numpy as np
import pytest
import yaml

import blip2_jax
from blip2_jax.cli import caption, convert, evaluate
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.huggingface_folder import huggingface_sizes
from blip2_jax.data import hub
from blip2_jax.data.hub_errors import HubError
from blip2_jax.inference.load import ExtraWeights, open_model
from blip2_jax.training.frozen import tower_weights
from tests.support import capfilt_models as capfilt
from tests.support import peer_models as peers
from tests.support.hub_server import hub_server

# What real repositories hold besides the model, and what is never fetched.
OTHERS = {
    "README.md": "A model card.",
    ".gitattributes": "",
    "modeling_blip_2.py": "raise SystemExit('code of a stranger')",
    "pytorch_model.bin": b"pickled",
    "flax_model.msgpack": b"x",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return tiny Hugging Face folders in shards, by family."""
    made = {}
    for family in ("opt", "retrieval"):
        made[family] = tmp_path_factory.mktemp(family)
        peers.write_huggingface(made[family], family, shard="20KB")
    return made


@pytest.fixture
def server(monkeypatch, tmp_path, folders):
    with hub_server(monkeypatch, tmp_path / "cache") as server:
        for family, folder in folders.items():
            server.add(f"org/{family}", folder)
            _, files = server.files(f"org/{family}")
            server.add(f"org/{family}", files | OTHERS)
        yield server


def shards_with(folder, prefix):
    """Return the shards that hold names with a prefix, and all shards."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard_of = index["weight_map"]
    needed = {shard for name, shard in shard_of.items() if name.startswith(prefix)}
    return needed, set(shard_of.values())


def cached_weights(name):
    return {path.name for path in hub.local_path(name).glob("*.safetensors")}


def test_a_model_is_loaded_by_name(server, folders):
    model = blip2_jax.load("org/opt")
    expected = blip2_jax.load(folders["opt"])
    image = blip2_jax.example_image(0)
    assert model.caption(image) == expected.caption(image)
    for ours, theirs in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(expected.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    fetched = set(server.fetched())
    assert not fetched & OTHERS.keys()
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= fetched
    hub.forget_repositories()  # as in another process
    server.requests.clear()
    open_model("org/opt")
    assert not server.requests


def test_a_captioner_and_a_clip_are_loaded_by_name(monkeypatch, tmp_path):
    capfilt.write_blip(tmp_path / "blip")
    capfilt.write_clip(tmp_path / "clip")
    kinds = {"blip": blip2_jax.load_captioner, "clip": blip2_jax.load_clip}
    with hub_server(monkeypatch, tmp_path / "cache") as server:
        for name, load in kinds.items():
            server.add(f"org/{name}", tmp_path / name)
            ours, expected = load(f"org/{name}"), load(tmp_path / name)
            jax.tree.map(np.testing.assert_array_equal, ours.params, expected.params)
            assert f"(org/{name})" in repr(ours)


def test_of_a_tower_only_its_shards_are_fetched(server, folders):
    config = huggingface_sizes(CheckpointFiles(folders["opt"]))
    arrays = tower_weights("hf://org/opt", config)
    tower = [path for path in arrays if path.startswith("visual_encoder/")]
    expected = tower_weights(str(folders["opt"]), config)
    for path in tower:
        np.testing.assert_array_equal(arrays[path], expected[path])
    needed, all_shards = shards_with(folders["opt"], "vision_model.")
    assert cached_weights("org/opt") == needed < all_shards
    for shard in all_shards - needed:  # the header alone
        assert server.fetched()[shard] <= 100_001
    assert arrays.origin(tower[0]) == hub.pinned("org/opt")


def test_the_text_branch_comes_from_another_repository(server, folders):
    source = open_model("org/opt", ExtraWeights(text_branch="org/retrieval"))
    assert len(source.carried()) > 0
    assert source.language_tokenizer == hub.pinned("org/opt")


def test_a_repository_of_something_else_is_named_before_its_weights_come(
    server, tmp_path
):
    _, transformers = peers.torch_and_transformers()
    config = peers.text_config(transformers, "opt")
    transformers.OPTForCausalLM(config).save_pretrained(tmp_path / "language")
    server.add("org/language", tmp_path / "language")
    size = (tmp_path / "language" / "model.safetensors").stat().st_size
    with pytest.raises(SourceError, match=r"^org/language is OPT: a part of a model"):
        blip2_jax.load("org/language")
    # The header alone: a real file is gigabytes long.
    assert server.fetched()["model.safetensors"] <= min(size, 100_001)
    assert not cached_weights("org/language")


def test_the_command_prints_one_line(server, capsys):
    arguments = ["--image", "shapes:0", "--model"]
    assert caption.main([*arguments, "org/none"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no file or folder 'org/none', and http://127")
    assert error.count("\n") == 1
    assert caption.main([*arguments, "org/opt"]) == 0
    assert capsys.readouterr().out.startswith("shapes:0: ")


def test_a_model_is_evaluated_by_name(server, tmp_path, capsys):
    data = {"kind": "shapes", "split": "heldout", "size": 28}
    arguments = ["--model", "org/retrieval", "--task", "retrieval"]
    arguments += ["--data", json.dumps(data), "--out", str(tmp_path / "record.json")]
    assert evaluate.main(arguments) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["settings"]["model"] == "org/retrieval"


def convert_to(layout, tmp_path, *more):
    output = tmp_path / "out"
    arguments = ["--model", "org/opt", "--to", layout, "--out", str(output)]
    return convert.main([*arguments, *more])


@pytest.mark.parametrize("layout", ["blip2_jax", "huggingface"])
def test_a_converted_model_is_pushed_with_a_card_and_loads(
    server, tmp_path, monkeypatch, capsys, layout
):
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    push = ("--push", "me/mine", "--license", "mit")
    assert convert_to(layout, tmp_path, *push) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.endswith(f"pushed to {server.url}/me/mine\n")
    _, files = server.files("me/mine")
    local = {p.relative_to(tmp_path / "out").as_posix() for p in files_in(tmp_path)}
    assert set(files) == local
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "mit"
    assert front["base_model"] == ["org/opt"]
    assert front["pipeline_tag"] == "image-to-text"
    assert 'blip2_jax.load("me/mine")' in card
    assert hub.pinned("org/opt") in card
    image = blip2_jax.example_image(0)
    model = blip2_jax.load("me/mine")
    assert model.caption(image) == blip2_jax.load("org/opt").caption(image)


def test_a_push_that_fails_keeps_the_folder(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    server.read_only.add("hf_good")
    assert convert_to("blip2_jax", tmp_path, "--push", "me/mine") == 1
    error = capsys.readouterr().err
    assert "hf://me/mine: http://127" in error
    assert "refuses access (403)" in error
    assert f"`hf upload me/mine {tmp_path / 'out'}` uploads it later" in error
    assert (tmp_path / "out" / "model.safetensors").is_file()


def files_in(tmp_path):
    return [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_without_a_token_nothing_is_converted(server, tmp_path, capsys):
    assert convert_to("blip2_jax", tmp_path, "--push", "me/mine") == 1
    assert "hf auth login" in capsys.readouterr().err
    assert convert_to("lavis", tmp_path, "--push", "me/mine") == 2
    assert "--push uploads a folder" in capsys.readouterr().err
    assert convert_to("blip2_jax", tmp_path, "--push", "mine") == 2
    assert "ORG/NAME" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_gated_is_explained(server, folders):
    server.add("org/gated", folders["opt"], restricted="gated")
    with pytest.raises(HubError, match=r"^hf://org/gated is gated: accept its terms"):
        blip2_jax.load("hf://org/gated")
