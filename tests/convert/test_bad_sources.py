"""Errors of conversion: each names its cause, and no output is left behind."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blip2_jax.cli import convert
from blip2_jax.convert.files import output
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.huggingface_export import write_huggingface
from blip2_jax.convert.lavis_file import write_lavis
from blip2_jax.convert.native_folder import write_folder
from blip2_jax.inference.load import ExtraWeights, open_model
from blip2_jax.models import presets
from tests.support import peer_models as peers
from tests.support.golden_stage1 import STAGE1, config


class RunsCode:
    """A pickle that would run code."""

    def __reduce__(self):
        return (print, ("code ran",))


@pytest.fixture
def huggingface(tmp_path):
    peers.write_huggingface(tmp_path / "theirs", "opt", shard="40KB")
    return tmp_path / "theirs"


@pytest.fixture
def stage1(tmp_path):
    """Return a LAVIS file of the golden model and the options that open it."""
    arrays = load_file(STAGE1 / "weights.safetensors")
    path = peers.write_pickle(tmp_path / "stage1.pth", arrays)
    sizes = peers.write_sizes(tmp_path / "sizes.json", config())
    return path, ExtraWeights(sizes=sizes, qformer_tokenizer="shapes:bert")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_truncated_shard(huggingface):
    shard = sorted(huggingface.glob("model-*.safetensors"))[1]
    truncate(shard)
    message = f"{shard.name} is not a complete safetensors"
    with pytest.raises(SourceError, match=message):
        open_model(huggingface)


def test_a_truncated_torch_file(stage1):
    truncate(stage1[0])
    message = r"stage1\.pth is (not a complete torch|refused)"
    with pytest.raises(SourceError, match=message):
        open_model(*stage1)


def test_a_missing_shard(huggingface):
    shard = sorted(huggingface.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(SourceError, match=rf"lacks 1 of the \d shards .* {shard.name}"):
        open_model(huggingface)


def test_an_index_that_names_an_array_its_shard_lacks(huggingface):
    index = huggingface / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps({"weight_map": {"no_such_array": shard}}))
    with pytest.raises(SourceError, match=f"{shard} lacks no_such_array"):
        CheckpointFiles(huggingface)


def test_a_pickle_with_code(tmp_path, capsys):
    peers.torch_and_transformers()
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"model": RunsCode()}))
    with pytest.raises(SourceError, match=r"evil\.pth is refused.*may run code"):
        open_model(path)
    assert "code ran" not in capsys.readouterr().out


def test_a_checkpoint_of_another_size(stage1):
    path, _ = stage1
    with pytest.raises(SourceError, match=r"sizes of no released model.*--sizes"):
        open_model(path)
    with pytest.raises(SourceError, match=r"blocks\.\* has 3 layers where .* has 39"):
        open_model(path, ExtraWeights(sizes="pretrain"))


def test_weights_that_do_not_fit_their_config(huggingface):
    file = huggingface / "config.json"
    content = json.loads(file.read_text())
    content["qformer_config"]["intermediate_size"] = 32
    file.write_text(json.dumps(content))
    message = (
        r"config\.json: qformer_config.intermediate_size is 32, .* weights have 24"
    )
    with pytest.raises(SourceError, match=message):
        open_model(huggingface)


def test_an_unknown_array_is_named(stage1):
    path, extra = stage1
    arrays = dict(CheckpointFiles(path)) | {"extra.weight": np.zeros(3, np.float32)}
    peers.write_pickle(path, arrays)
    with pytest.raises(SourceError, match=r"1 arrays that this model does not.*extra"):
        open_model(path, extra)


def test_a_missing_array_is_named(stage1):
    path, extra = stage1
    arrays = dict(CheckpointFiles(path))
    del arrays["Qformer.bert.encoder.layer.1.attention.self.key.weight"]
    peers.write_pickle(path, arrays)
    with pytest.raises(SourceError, match=r"layer_1/attention/key/kernel \(no Qformer"):
        open_model(path, extra)


def test_a_frozen_tower_without_a_file(stage1):
    path, extra = stage1
    arrays = {
        k: v for k, v in CheckpointFiles(path).items() if "visual_encoder" not in k
    }
    peers.write_pickle(path, arrays)
    with pytest.raises(SourceError, match=r"holds no image encoder.*--vision"):
        open_model(path, extra)


def test_a_tower_is_not_a_model(tmp_path):
    arrays = {"blocks.0.attn.q_bias": np.zeros(3, np.float32)}
    path = peers.write_pickle(tmp_path / "eva.pt", arrays, wrapper="")
    with pytest.raises(SourceError, match="is EVA-CLIP's image encoder: a part"):
        open_model(path)


def test_a_file_without_a_known_model(tmp_path):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match=r"is none of: LAVIS's BLIP-2.*such as a"):
        open_model(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        open_model(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no weights in .*empty"):
        open_model(tmp_path / "empty")


def test_an_unsupported_language_model(huggingface):
    file = huggingface / "config.json"
    content = json.loads(file.read_text())
    content["text_config"] = {"model_type": "bloom"}
    file.write_text(json.dumps(content))
    with pytest.raises(SourceError, match="'bloom'; supported are opt, t5"):
        open_model(huggingface)


def test_interrupted_conversions_leave_nothing(stage1, tmp_path, monkeypatch):
    source = open_model(*stage1)
    written = []

    def stop(self, name, array):
        written.append(name)
        if len(written) > 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(output.ShardWriter, "add", stop)
    for write in (write_folder, write_huggingface):
        written.clear()
        with pytest.raises(KeyboardInterrupt):
            write(source, tmp_path / "out")
        assert not list(tmp_path.glob("out*"))


def test_existing_output_is_not_overwritten(stage1, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    source = open_model(*stage1)
    for write in (write_folder, write_huggingface):
        with pytest.raises(FileExistsError, match="out exists already"):
            write(source, tmp_path / "out")
    with pytest.raises(FileExistsError):
        write_lavis(source, stage1[0])
    with pytest.raises(SourceError, match=r"ends with \.pth"):
        write_lavis(source, tmp_path / "out.bin")


def test_models_that_transformers_lacks(stage1):
    path, extra = stage1
    clip = presets.Blip2Config(presets.CLIP_VIT_L, presets.QFORMER_BASE)
    source = open_model(path, extra)
    with pytest.raises(SourceError, match="EVA-CLIP's image encoder only"):
        write_huggingface(dataclasses.replace(source, config=clip), path / "x")


def test_the_command_prints_one_line(stage1, tmp_path, capsys):
    path, _ = stage1
    truncate(path)
    arguments = ["--source", str(path), "--to", "lavis", "--output", "x.pth"]
    assert convert.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
