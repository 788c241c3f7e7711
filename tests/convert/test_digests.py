"""Digests of stored arrays: equal to those in memory, computed once per file state."""

import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blip2_jax.convert.files import digests
from blip2_jax.convert.files.checkpoint_files import SourceError
from blip2_jax.convert.files.digests import digest, stored_digests
from blip2_jax.convert.model_source import ModelSource
from blip2_jax.convert.native_folder import FolderArrays, write_folder
from blip2_jax.parallel.files import FileFormatError
from tests.support.golden_stage2 import config as golden_config

RNG = np.random.default_rng(0)
ARRAYS = {
    "a/kernel": RNG.standard_normal((3, 5)).astype(np.float32),
    "b/half": RNG.standard_normal(7).astype(ml_dtypes.bfloat16),
    "c/scalar": np.array(0.07, np.float32),
    "d/ids": np.arange(9).reshape(3, 3),
    "e/empty": np.zeros((0, 4), np.float32),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_digests_of_a_file_equal_those_of_its_arrays(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_file(ARRAYS, path)
    expected = {name: digest(array) for name, array in ARRAYS.items()}
    monkeypatch.setattr(digests, "_CHUNK_BYTES", 16)
    assert stored_digests(path) == expected
    with monkeypatch.context() as patch:
        patch.setattr(digests, "_compute", None)  # not computed again
        assert stored_digests(path) == expected


def test_a_file_that_was_replaced_or_touched_is_hashed_again(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(ARRAYS, path)
    before, state = stored_digests(path), path.stat()
    changed = ARRAYS | {"a/kernel": -ARRAYS["a/kernel"]}
    save_file(changed, path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as `cp --preserve`
    assert path.stat().st_size == state.st_size
    after = stored_digests(path)
    assert {name for name in before if before[name] != after[name]} == {"a/kernel"}


def test_a_damaged_or_absent_cache_costs_time_only(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_file(ARRAYS, path)
    expected = stored_digests(path)
    (cached,) = (tmp_path / "cache").rglob("*.json")
    cached.write_text("{")
    assert stored_digests(path) == expected
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert stored_digests(path) == expected


@pytest.mark.parametrize(
    "content", [b"", b"\x05", struct.pack("<Q", 2**60), struct.pack("<Q", 2) + b"[]"]
)
def test_a_file_of_another_format_is_named(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"a\.safetensors is not in safetensors"):
        stored_digests(path)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_values_that_were_replaced_in_a_folder_are_refused(tmp_path, dtype):
    arrays = {name: ARRAYS[name] for name in ("a/kernel", "b/half")}
    source = ModelSource(golden_config("stage2_opt_a"), arrays, "test")
    write_folder(source, tmp_path / "folder", dtype)
    folder = FolderArrays(tmp_path / "folder")
    entry = folder.origin("a/kernel")
    assert entry["digest"] == digest(arrays["a/kernel"])
    assert entry.get("stored_dtype") == dtype
    replace(tmp_path / "folder", "a/kernel")
    with pytest.raises(SourceError, match=r"folder: the values of a/kernel are not"):
        folder.origin("a/kernel")
    folder.origin("b/half")


def test_cast_values_of_earlier_folders_get_a_digest(tmp_path):
    """Their manifest has only the digest of the values before the cast."""
    arrays = {"a/kernel": ARRAYS["a/kernel"]}
    source = ModelSource(golden_config("stage2_opt_a"), arrays, "test")
    write_folder(source, tmp_path / "folder", "bfloat16")
    path = tmp_path / "folder" / "manifest.json"
    manifest = json.loads(path.read_text())
    stored = manifest["a/kernel"].pop("stored")
    del manifest["a/kernel"]["stored_dtype"]
    path.write_text(json.dumps(manifest))
    assert FolderArrays(tmp_path / "folder").origin("a/kernel")["stored"] == stored
    replace(tmp_path / "folder", "a/kernel")
    assert FolderArrays(tmp_path / "folder").origin("a/kernel")["stored"] != stored


def test_a_folder_made_of_a_folder_has_the_digests_of_its_own_values(tmp_path):
    arrays = {"a/kernel": ARRAYS["a/kernel"]}
    for name, dtype in (("half", "bfloat16"), ("again", "float32")):
        source = ModelSource(golden_config("stage2_opt_a"), arrays, "test")
        write_folder(source, tmp_path / name, dtype)
        arrays = FolderArrays(tmp_path / name)
        entry = arrays.origin("a/kernel")
        assert entry["digest"] == digest(ARRAYS["a/kernel"])
        assert entry["stored"] == digest(arrays["a/kernel"])


def replace(folder, name):
    """Replace the values of an array in place."""
    path = folder / "model.safetensors"
    content = load_file(path)
    save_file(content | {name: -content[name]}, path, metadata={"format": "pt"})
