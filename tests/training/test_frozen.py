"""Frozen weights on a mesh: the parts that are read, and their shardings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.convert.files.checkpoint_files import CheckpointFiles
from blip2_jax.convert.model_source import ModelSource
from blip2_jax.convert.native_folder import FolderArrays, write_folder
from blip2_jax.nn.trees import flatten, unflatten
from blip2_jax.parallel import sharding
from blip2_jax.training.frozen import WeightsError, load_frozen
from tests.support.golden_stage2 import config as golden_config

KERNEL, NORM = "language_model/blocks/mlp/up/kernel", "language_model/norm/scale"


def converted(tmp_path):
    """Return the parameters of a converted folder, and their values."""
    rng = np.random.default_rng(0)
    arrays = {
        KERNEL: rng.standard_normal((2, 8, 4), np.float32),
        NORM: rng.standard_normal(6, np.float32),
    }
    source = ModelSource(golden_config("stage2_opt_a"), arrays, "test")
    write_folder(source, tmp_path / "folder")
    return FolderArrays(tmp_path / "folder"), arrays


def shapes(arrays):
    return unflatten(
        {p: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for p, a in arrays.items()}
    )


def test_each_part_of_a_converted_folder_is_read_once(tmp_path, monkeypatch):
    folder, arrays = converted(tmp_path)
    mesh = sharding.make_mesh(data=2, fsdp=4)
    parts, read_part = [], CheckpointFiles.part

    def record_and_read(self, name, index):
        part = read_part(self, name, index)
        parts.append((name, part.shape))
        return part

    monkeypatch.setattr(CheckpointFiles, "part", record_and_read)
    monkeypatch.setattr(FolderArrays, "__getitem__", None)  # no array is read in full
    loaded, manifest = load_frozen(shapes(arrays), {"w": folder}, jnp.bfloat16, mesh)
    for path, array in flatten(loaded).items():
        np.testing.assert_array_equal(array, arrays[path].astype(jnp.bfloat16))
        assert manifest[path]["digest"] == folder.origin(path)["digest"]
    assert sorted(parts) == [(KERNEL, (2, 2, 4))] * 4 + [(NORM, (6,))]


def test_arrays_without_digests_are_read_once_and_hashed(tmp_path):
    folder, arrays = converted(tmp_path)
    mesh = sharding.make_mesh(fsdp=8, data=1)
    loaded, manifest = load_frozen(shapes(arrays), {"w": arrays}, jnp.float32, mesh)
    assert flatten(loaded)[KERNEL].addressable_shards[0].data.shape == (2, 1, 4)
    for path, array in flatten(loaded).items():
        np.testing.assert_array_equal(array, arrays[path])
        assert manifest[path]["digest"] == folder.origin(path)["digest"]


def test_another_shape_is_an_error_before_reading(tmp_path, monkeypatch):
    folder, arrays = converted(tmp_path)
    monkeypatch.setattr(CheckpointFiles, "part", None)
    expected = shapes(arrays | {KERNEL: np.zeros((2, 8, 5))})
    with pytest.raises(WeightsError, match=r"kernel is \(2, 8, 4\) in w.*\(2, 8, 5\)"):
        load_frozen(expected, {"w": folder}, jnp.bfloat16, sharding.make_mesh())
