"""Folders of strangers: other files, damaged files and impossible values."""

import json
import os
import struct
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import blip2_jax
from blip2_jax.cli import convert
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.native_folder import read_folder, write_folder
from blip2_jax.inference.load import open_model
from tests.support import peer_models as peers


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a Hugging Face folder."""
    peers.write_huggingface(tmp_path_factory.mktemp("hf") / "theirs", "opt")
    return next(tmp_path_factory.getbasetemp().glob("hf*/theirs"))


@pytest.fixture
def folder(written, tmp_path):
    """Return a copy of the folder without a tokenizer."""
    path = tmp_path / "theirs"
    path.mkdir()
    for name in ("config.json", "model.safetensors"):
        (path / name).write_bytes((written / name).read_bytes())
    return path


def as_pickle(folder):
    """Replace the safetensors by a pickle."""
    arrays = load_file(folder / "model.safetensors")
    peers.write_pickle(folder / "pytorch_model.bin", arrays, wrapper="")
    (folder / "model.safetensors").unlink()


def index(folder, name, shard):
    names = load_file(folder / "model.safetensors")
    content = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (folder / name).write_text(json.dumps(content))


def other_weights(folder, name="model_backup.safetensors"):
    arrays = load_file(folder / "model.safetensors")
    save_file({k: v + 1 for k, v in arrays.items()}, folder / name)


def torch_save(folder, name, content):
    torch, _ = peers.torch_and_transformers()
    as_pickle(folder) if not (folder / "pytorch_model.bin").exists() else None
    torch.save(content(torch), folder / name)


LEFT_OVER = ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin")
OTHER_FILES = {
    "index of absent pickles": lambda f: index(f, *LEFT_OVER),
    "index of absent shards": lambda f: index(
        f, "model.safetensors.index.json", "model-00001-of-00002.safetensors"
    ),
    "backup": other_weights,
    "optimizer in safetensors": lambda f: other_weights(f, "optimizer.safetensors"),
    "half": lambda f: torch_save(
        f, "pytorch_model.fp16.bin", lambda torch: {"query_tokens": torch.zeros(1)}
    ),
    "scheduler": lambda f: torch_save(f, "scheduler.pt", lambda torch: {"epoch": 3}),
    "optimizer": lambda f: torch_save(
        f, "optimizer.pt", lambda torch: {"state": {0: {"m": torch.zeros(3)}}}
    ),
    "random state": lambda f: torch_save(
        f, "rng_state_0.pth", lambda torch: {"cpu": torch.get_rng_state()}
    ),
    "arguments": lambda f: torch_save(
        f, "training_args.bin", lambda torch: {"lr": 1e-4}
    ),
    "named pipe": lambda f: os.mkfifo(f / "a.safetensors"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_not_the_model(folder, name):
    expected = load_file(folder / "model.safetensors")["query_tokens"][0]
    OTHER_FILES[name](folder)
    arrays = open_model(folder).arrays
    np.testing.assert_array_equal(arrays["query_tokens"], expected)


def test_trainer_states_are_no_weights_of_a_tower(tmp_path):
    arrays = {"blocks.0.attn.q_bias": np.zeros(3, np.float32)}
    peers.write_pickle(tmp_path / "eva_vit_g.pth", arrays, wrapper="")
    peers.write_pickle(tmp_path / "optimizer.pt", {"exp_avg": np.zeros(2)})
    assert list(CheckpointFiles(tmp_path)) == list(arrays)


def test_two_files_with_the_same_array(folder):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    with pytest.raises(SourceError, match=r"a\.safetensors and b\.safetensors .* both"):
        open_model(folder)


def config(folder):
    return json.loads((folder / "config.json").read_text())


def change(**values):
    def apply(folder):
        content = config(folder) | values
        (folder / "config.json").write_text(json.dumps(content))

    return apply


def change_part(part, **values):
    return lambda folder: change(**{part: config(folder)[part] | values})(folder)


def rewrite(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name, share):
    def apply(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return apply


def header(entry):
    text = json.dumps({"query_tokens": entry}).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(4)
    return rewrite("model.safetensors", content)


def bad_index(content):
    def apply(folder):
        (folder / "model.safetensors").unlink()
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(content))

    return apply


# What was done to the folder: words of the message.
DAMAGE = {
    "no JSON": (rewrite("config.json", b"{"), ["config.json"]),
    "empty": (rewrite("config.json", b""), ["config.json"]),
    "cut": (cut("config.json", 0.3), ["config.json"]),
    "list": (rewrite("config.json", b"[1]"), ["config.json", "list"]),
    "deep": (rewrite("config.json", b"[" * 100_000), ["config.json"]),
    "null": (change(num_query_tokens=None), ["config.json", "num_query_tokens"]),
    "zero": (change(num_query_tokens=0), ["config.json", "num_query_tokens", "0"]),
    "text": (change(num_query_tokens="4"), ["config.json", "num_query_tokens"]),
    "section": (change(vision_config=[1]), ["config.json", "vision_config", "[1]"]),
    "null section": (change(qformer_config=None), ["config.json", "qformer_config"]),
    "patch 0": (change_part("vision_config", patch_size=0), ["config.json", "patch"]),
    "heads 0": (
        change_part("vision_config", num_attention_heads=0),
        ["config.json", "heads is 0"],
    ),
    "heads 3": (
        change_part("qformer_config", num_attention_heads=3),
        ["config.json", "heads 3"],
    ),
    "frequency 0": (
        change_part("qformer_config", cross_attention_frequency=0),
        ["config.json", "cross_attention_frequency is 0"],
    ),
    "negative": (
        change_part("vision_config", layer_norm_eps=-1.0),
        ["config.json", "layer_norm_eps is -1"],
    ),
    "null activation": (
        change_part("qformer_config", hidden_act=None),
        ["config.json", "hidden_act"],
    ),
    "vision of ten million layers": (
        change_part("vision_config", num_hidden_layers=10**7),
        ["config.json", "num_hidden_layers is 10000000", "weights have 3"],
    ),
    "Q-Former of ten million layers": (
        change_part("qformer_config", num_hidden_layers=10**7),
        ["config.json", "num_hidden_layers is 10000000", "weights have 2"],
    ),
    "giant image": (
        change_part("vision_config", image_size=10**9),
        ["config.json", "image_size 1000000000"],
    ),
    "giant width": (
        change_part("vision_config", hidden_size=10**12),
        ["config.json", "hidden_size is 1000000000000"],
    ),
    "float8": (
        header({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}),
        ["model.safetensors", "F8_E4M3", "query_tokens"],
    ),
    "giant array": (
        header({"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4]}),
        ["model.safetensors"],
    ),
    "cut weights": (cut("model.safetensors", 0.7), ["model.safetensors"]),
    "cut header": (cut("model.safetensors", 0.01), ["model.safetensors"]),
    "empty weights": (cut("model.safetensors", 0), ["model.safetensors"]),
    "null map": (bad_index({"weight_map": None}), ["index.json", "weight_map"]),
    "number in map": (bad_index({"weight_map": {"a": 3}}), ["index.json", "3"]),
    "path in map": (
        bad_index({"weight_map": {"a": "../../x.safetensors"}}),
        ["index.json", "../../x"],
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(folder, name):
    apply, words = DAMAGE[name]
    apply(folder)
    start = time.perf_counter()
    with pytest.raises(SourceError) as error:
        open_model(folder)
    assert time.perf_counter() - start < 5
    for word in words:
        assert word in str(error.value)


def test_a_byte_order_mark_is_no_damage(folder):
    content = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert open_model(folder).stage == 2


def pickles(torch):
    """Return damaged contents of a pickle by name."""
    return {
        "nested": {"model": {"a": {"b": torch.zeros(2)}, "c": torch.zeros(2)}},
        "sparse": {"a": torch.zeros(2, 2).to_sparse()},
        "complex": {"a": torch.zeros(2, dtype=torch.complex64)},
        "quarter": {"a": torch.zeros(2).to(torch.float8_e4m3fn)},
        "number as name": {3: torch.zeros(2)},
        "list": [torch.zeros(2)],
    }


@pytest.mark.parametrize(
    "name", ["nested", "sparse", "complex", "quarter", "number as name", "list"]
)
def test_pickles_of_other_content(tmp_path, name):
    torch, _ = peers.torch_and_transformers()
    torch.save(pickles(torch)[name], tmp_path / "x.pth")
    with pytest.raises(SourceError, match=r"x\.pth"):
        open_model(tmp_path / "x.pth")


@pytest.mark.parametrize("size", [0, 5, 100, 1000])
def test_cut_pickles(tmp_path, size):
    arrays = {"a": np.zeros((40, 40), np.float32)}
    path = peers.write_pickle(tmp_path / "x.pth", arrays)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SourceError, match=r"x\.pth"):
        open_model(path)


@pytest.fixture
def native(folder, tmp_path):
    """Return a folder of this package."""
    write_folder(open_model(folder), tmp_path / "ours")
    return tmp_path / "ours"


def set_field(name, value):
    def apply(folder):
        content = json.loads((folder / "model.json").read_text())
        *parts, key = name.split(".")
        part = content
        for each in parts:
            part = part[each]
        part[key] = value
        (folder / "model.json").write_text(json.dumps(content))

    return apply


def drop_array(folder):
    """Remove an array from the weights and the manifest."""
    arrays = load_file(folder / "model.safetensors")
    del arrays["query_tokens"]
    save_file(arrays, folder / "model.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["query_tokens"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


NATIVE_DAMAGE = {
    "cut sizes": (cut("model.json", 0.5), "model.json"),
    "cut manifest": (cut("manifest.json", 0.5), "manifest.json"),
    "list": (rewrite("manifest.json", b"[]"), "manifest.json holds a JSON list"),
    "no sizes": (set_field("sizes", None), "damaged"),
    "depth": (set_field("sizes.qformer.depth", 10**7), "depth is 10000000"),
    "width": (set_field("sizes.qformer.width", 0), "width is 0"),
    "mlp": (set_field("sizes.qformer.mlp_dim", 32), "a size is 24 where .* has 32"),
    "act": (set_field("sizes.qformer.activation", "x"), "activation is 'x'"),
    "tokenizer": (set_field("language_tokenizer", 3), "damaged"),
    "array": (drop_array, "1 parameters are in no source: query_tokens"),
}


@pytest.mark.parametrize("name", NATIVE_DAMAGE)
def test_damage_of_a_converted_folder_is_named(native, name):
    apply, message = NATIVE_DAMAGE[name]
    apply(native)
    with pytest.raises(SourceError, match=message) as error:
        read_folder(native)
    assert str(native) in str(error.value)


def test_no_trace_on_the_command_line(folder, capsys):
    change(num_query_tokens=None)(folder)
    arguments = ["--source", str(folder), "--to", "blip2_jax", "--output", "x"]
    assert convert.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(ValueError, match=r"config\.json"):
        blip2_jax.load(folder)
