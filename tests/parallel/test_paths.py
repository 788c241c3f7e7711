"""Paths on object stores behave as local ones, and their failures are retried."""

import pathlib
import pickle
import sys
import time

import pytest

from blip2_jax.parallel import store_retries
from blip2_jax.parallel.files import create_text, read_json, write_atomically
from blip2_jax.parallel.paths import (
    as_path,
    file_state,
    glob_paths,
    is_remote,
    list_files,
    read_range,
)
from blip2_jax.parallel.store_cache import local_copy
from blip2_jax.parallel.store_retries import StoreError, retry_count


def test_local_paths_are_ordinary_paths(tmp_path):
    assert isinstance(as_path(tmp_path), pathlib.Path)
    assert as_path("a/b") == pathlib.Path("a/b")
    assert not is_remote("hf://datasets/org/name")
    (tmp_path / "x").write_bytes(b"0123456789")
    assert read_range(tmp_path / "x", 3, 4) == b"3456"
    assert read_range(tmp_path / "x", 8, 9) == b"89"
    assert file_state(tmp_path / "x")[0] == 10


def test_names_of_stores_survive_pathlib_and_pickle():
    path = as_path(pathlib.Path("s3://bucket/folder"))
    assert str(path) == "s3://bucket/folder"
    assert str(path / "a.json") == "s3://bucket/folder/a.json"
    assert str((path / "a.json").with_suffix(".txt")) == "s3://bucket/folder/a.txt"
    assert str(path.parent) == "s3://bucket"
    assert pickle.loads(pickle.dumps(path)) == path
    assert is_remote(path.parent) and is_remote("gs://bucket/x")


def test_other_stores_are_refused():
    with pytest.raises(ValueError, match=r"az://b.*local, gs://BUCKET"):
        as_path("az://b/k")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    registry = pytest.importorskip("fsspec.registry")
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    with pytest.raises(ImportError, match="the extra 'remote'"):
        as_path("s3://bucket/key").exists()


def check_store(root, conditional=True):
    """Check all operations on an empty directory of a store.

    Args:
      root: the directory.
      conditional: the emulator knows writes on the condition that nothing is there.
    """
    folder = as_path(root) / "some folder"
    assert not folder.exists() and not folder.is_dir()
    file = folder / "a.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, '{"a": "ä"}')
    assert read_json(file) == {"a": "ä"}
    assert folder.is_dir() and not folder.is_file()
    assert file.is_file() and not file.is_dir()
    assert file.stat().st_size == file_state(file)[0] == 11
    before = file_state(file)
    file.write_bytes(b"0123456789")
    assert file_state(file) != before
    assert read_range(file, 3, 4) == b"3456"
    assert read_range(file, 8, 9) == b"89"
    assert read_range(file, 3, 0) == read_range(file, 10, 5) == b""
    with file.open("rb") as opened:
        opened.seek(-2, 2)
        assert opened.read() == b"89"
    with (folder / "sub" / "b.txt").open("w") as opened:
        opened.write("line\n" * 3)
    with (folder / "sub" / "b.txt").open() as opened:
        assert opened.readlines() == ["line\n"] * 3
    with pytest.raises(KeyError), (folder / "torn.txt").open("w") as opened:
        opened.write("half")
        raise KeyError
    assert not (folder / "torn.txt").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "sub"]
    assert list_files(folder) == ["a.json", "sub/b.txt"]
    assert [path.name for path in folder.glob("*.json")] == ["a.json"]
    assert [path.name for path in folder.rglob("*.txt")] == ["b.txt"]
    assert list(map(str, glob_paths(f"{folder}/*.json"))) == [str(file)]
    assert glob_paths(f"{folder}/*.tar") == []
    file.rename(folder / "c.json")
    assert list_files(folder) == ["c.json", "sub/b.txt"]
    (folder / "sub").rename(folder / "moved")
    assert list_files(folder) == ["c.json", "moved/b.txt"]
    create_text(folder / "lock", "mine")
    if conditional:
        with pytest.raises(FileExistsError):
            create_text(folder / "lock", "yours")
    assert (folder / "lock").read_text() == "mine"
    (folder / "lock").unlink()
    (folder / "lock").unlink(missing_ok=True)
    for operation in ("read_bytes", "unlink", "stat"):
        with pytest.raises(FileNotFoundError):
            getattr(folder / "nothing", operation)()
    as_path(root).rmtree()
    assert not folder.exists()


def test_all_operations_on_s3(s3):
    check_store(s3.root)


def test_all_operations_on_gcs(gcs):
    check_store(gcs, conditional=False)


def test_copies_are_made_once_for_each_content(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "folder").mkdir()
    assert local_copy(tmp_path / "folder") == tmp_path / "folder"
    root = as_path(s3.root)
    (root / "model" / "a.bin").write_bytes(b"one")
    (root / "model" / "sub" / "b.bin").write_bytes(b"two")
    copy = local_copy(root / "model")
    assert copy.name == "model"
    assert (copy / "sub" / "b.bin").read_bytes() == b"two"
    assert local_copy(root / "model" / "a.bin").read_bytes() == b"one"
    assert local_copy(root / "model") == copy
    (root / "model" / "a.bin").write_bytes(b"ONE")
    assert (local_copy(root / "model") / "a.bin").read_bytes() == b"ONE"
    assert (copy / "a.bin").read_bytes() == b"one"
    assert not local_copy(root / "nothing").exists()


def test_passing_failures_are_retried_and_counted(flaky_s3):
    bucket, proxy = flaky_s3
    path = as_path(bucket.root) / "data"
    proxy.fail_every = 2
    before = retry_count()
    for number in range(8):
        (path / str(number)).write_bytes(bytes([number]) * 1000)
    for number in range(8):
        assert read_range(path / str(number), 10, 500) == bytes([number]) * 500
    proxy.fail_every = 0
    # Slow answers fail nothing, half an answer fails reads only, and aiohttp repeats
    # a request on a connection that was dropped before an answer.
    assert proxy.failures // 4 < retry_count() - before <= proxy.failures


def test_what_is_missing_or_forbidden_is_not_retried(flaky_s3):
    bucket, proxy = flaky_s3
    before, start = retry_count(), time.monotonic()
    with pytest.raises(FileNotFoundError):
        (as_path(bucket.root) / "nothing").read_bytes()
    assert not (as_path(bucket.root) / "nothing").exists()
    proxy.status = 403
    with pytest.raises(PermissionError):
        (as_path(bucket.root) / "nothing").read_bytes()
    assert retry_count() == before
    assert time.monotonic() - start < 5


def test_a_long_outage_is_an_error_that_names_path_error_and_time(
    flaky_s3, monkeypatch
):
    bucket, proxy = flaky_s3
    monkeypatch.setenv(store_retries.PATIENCE, "1")
    path = as_path(bucket.root) / "x"
    path.write_bytes(b"there")
    proxy.outage = True
    start = time.monotonic()
    with pytest.raises(StoreError) as error:
        path.read_bytes()
    assert time.monotonic() - start < 3
    assert str(path) in str(error.value)
    assert "the limit is 1 s" in str(error.value)
    start = time.monotonic()
    with pytest.raises(StoreError):  # no second wait
        path.read_bytes()
    assert time.monotonic() - start < 0.5
    proxy.outage = False
    assert path.read_bytes() == b"there"


def test_a_short_outage_is_waited_for(flaky_s3):
    bucket, proxy = flaky_s3
    path = as_path(bucket.root) / "x"
    path.write_bytes(b"there")
    proxy.outage = 3  # requests
    assert path.read_bytes() == b"there"


def test_patience_must_be_a_number(monkeypatch):
    monkeypatch.setenv(store_retries.PATIENCE, "long")
    with pytest.raises(ValueError, match="must be seconds"):
        store_retries.patience_s()
