"""Memory of conversion: one stacked array at a time, and no array before access."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from blip2_jax.convert.files import torch_pickle
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles
from blip2_jax.convert.files.formats import PickleFile, SafetensorsFile
from blip2_jax.convert.files.output import ShardWriter
from blip2_jax.convert.files.torch_pickle import SMALL
from blip2_jax.convert.model_source import ModelSource
from blip2_jax.convert.native_folder import write_folder
from blip2_jax.convert.tables.name_table import Rule
from blip2_jax.inference.load import ExtraWeights, open_model
from tests.support import golden_stage2
from tests.support import peer_models as peers

LAYERS, SIZE = 16, 2**18


class Layers(dict):
    """Layers that are made on access."""

    def __getitem__(self, name):
        return np.full(SIZE, float(name.split(".")[1]), np.float32)


def test_stacking_holds_the_result_and_one_layer():
    rule = Rule("h.{}.w", "blocks/w", layers=range(LAYERS), stack=True)
    tracemalloc.start()
    (array,) = rule.to_ours(Layers()).values()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(array[:, 0], np.arange(LAYERS))
    assert peak < array.nbytes + 4 * SIZE * 4


def test_layers_of_unequal_dtype_are_refused():
    rule = Rule("h.{}.w", "blocks/w", layers=range(2), stack=True)
    source = {"h.0.w": np.ones(2, np.float32), "h.1.w": np.ones(2, np.float16)}
    message = "layer 1 is float16, the layers before it are float32"
    with pytest.raises(ValueError, match=message):
        rule.to_ours(source)


def test_a_writer_holds_one_shard(tmp_path):
    tracemalloc.start()
    writer = ShardWriter(tmp_path, limit=3 * SIZE)
    for number in range(12):
        writer.add(f"a{number}", np.full(SIZE, number, np.uint8))
    writer.close()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * SIZE
    assert len(list(tmp_path.glob("model-*-of-00004.safetensors"))) == 4
    assert CheckpointFiles(tmp_path)["a7"][0] == 7


def test_one_array_is_read_without_the_others(tmp_path, monkeypatch):
    arrays = dict(golden_stage2.source("stage2_opt_a"))
    path = peers.write_pickle(tmp_path / "theirs.pth", arrays)
    sizes = peers.write_sizes(
        tmp_path / "sizes.json", golden_stage2.config("stage2_opt_a")
    )
    source = open_model(path, ExtraWeights(sizes=sizes))
    read = []
    real = CheckpointFiles.__getitem__

    def record_and_read(self, name):
        read.append(name)
        return real(self, name)

    monkeypatch.setattr(CheckpointFiles, "__getitem__", record_and_read)
    source.arrays["ln_vision/scale"]
    assert read == ["ln_vision.weight"]
    read.clear()
    write_folder(source, tmp_path / "ours")
    assert len(read) == len(set(read))  # no array is read twice


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_floating_array_is_cast(tmp_path, dtype):
    arrays = {"a/b": np.ones(3, np.float32), "c": np.ones(2, ml_dtypes.bfloat16)}
    source = ModelSource(golden_stage2.config("stage2_opt_a"), arrays, "test")
    write_folder(source, tmp_path / "out", dtype)
    written = CheckpointFiles(tmp_path / "out")
    assert {written[name].dtype.name for name in written} == {dtype}


@pytest.mark.parametrize("name", ["safetensors", "pickle", "ours"])
def test_opening_a_model_reads_no_array(tmp_path, monkeypatch, name):
    config = golden_stage2.config("stage2_opt_a")
    arrays = dict(golden_stage2.source("stage2_opt_a"))
    sizes = peers.write_sizes(tmp_path / "sizes.json", config)
    if name == "pickle":
        path = peers.write_pickle(tmp_path / "theirs.pth", arrays)
    else:
        path = tmp_path / "theirs.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
    if name == "ours":
        write_folder(open_model(path, ExtraWeights(sizes=sizes)), tmp_path / "ours")
        path, sizes = tmp_path / "ours", ""

    def refuse(self, name, *index):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(SafetensorsFile, "read", refuse)
    monkeypatch.setattr(PickleFile, "read", refuse)
    source = open_model(path, ExtraWeights(sizes=sizes))
    assert "ln_vision/scale" in source.arrays
    with pytest.raises(AssertionError, match="was read"):
        source.arrays["ln_vision/scale"]


def test_a_pickled_file_is_written_from_memory_maps(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tied = np.arange(SMALL, dtype=np.float32).reshape(2, -1)
    arrays = [
        ("tied", tied),
        ("alias", tied),
        ("half", np.full((3, SMALL), 0.1, ml_dtypes.bfloat16)),
        ("small", np.arange(3)),
        ("scalar", np.array(0.07, np.float32)),
    ]
    tracemalloc.start()
    torch_pickle.save(iter(arrays), tmp_path / "out.pth")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < SMALL  # 14 * SMALL bytes are written
    assert [file.name for file in tmp_path.iterdir()] == ["out.pth"]
    tensors = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert tensors["tied"].data_ptr() == tensors["alias"].data_ptr()
    source = CheckpointFiles(tmp_path / "out.pth")
    for name, array in arrays:
        assert source[name].dtype == array.dtype
        np.testing.assert_array_equal(source[name], array)
