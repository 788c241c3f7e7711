"""Damaged feature caches: an error or a broken sample that names the file."""

import json
import shutil

import numpy as np
import pytest

from blip2_jax.data.feature_manifest import MANIFEST
from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.cached_features import CachedFeaturesSource
from blip2_jax.data.sources.reading import read_features, read_record
from blip2_jax.parallel.files import FileFormatError
from tests.support.feature_caches import write_cache
from tests.support.tiny_runs import tiny_config

RECORDS = 12
VALUES = (None, -1, 0, 1, 2**70, 1.5, True, "", "int8", [], {}, [1], {"a": 1}, "nan")


@pytest.fixture(scope="module", params=["bf16", "int8"])
def cache(request, tmp_path_factory):
    config = tiny_config("stage1").unlock()
    config.data.train = ({"kind": "shapes", "split": "train", "size": RECORDS},)
    out = tmp_path_factory.mktemp("cache")
    write_cache(out, config, dtype=request.param, records_per_shard=8)
    return out


def contents(path):
    """Return all records of a cache, and the numbers of broken ones.

    Every broken record names the file or the directory.
    """
    source = CachedFeaturesSource(str(path))
    found = []
    for index in range(len(source)):
        try:
            record = read_record(source, index)
            found.append((record, read_features(source, index, record.key).tobytes()))
        except BrokenSample as error:
            assert str(path) in str(error), error
            found.append(None)
    return found


def mutate_bytes(data, rng):
    """Flip bits, overwrite a part, cut, or swap two blocks of a file."""
    data = bytearray(data)
    kind = rng.integers(5)
    start = int(rng.integers(len(data)))
    if kind == 0:
        for place in rng.integers(len(data), size=3):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        length = len(data[start : start + int(rng.integers(1, 4000))])
        data[start : start + length] = rng.bytes(length)
    elif kind == 2:
        data = data[:start]
    elif kind == 3:
        data[start : start + 64] = b"\0" * len(data[start : start + 64])
    else:
        half = len(data) // 2
        data = data[half:] + data[:half]
    return bytes(data)


def check_shard(cache, folder, seed, same_size):
    """Read a cache with one damaged shard."""
    rng = np.random.default_rng(seed)
    shards = sorted(cache.glob("*.array_record"))
    shard = shards[int(rng.integers(len(shards)))]
    damaged = folder / shard.name
    original = shard.read_bytes()
    data = mutate_bytes(original, rng)
    damaged.write_bytes(data.ljust(len(original), b"\0") if same_size else data)
    expected = contents(cache)
    try:
        found = contents(folder)
    except FileFormatError as error:
        assert str(folder) in str(error)
    else:
        assert len(found) == RECORDS
        for record, whole in zip(found, expected, strict=True):
            assert record is None or record == whole
    finally:
        shutil.copy(shard, damaged)


def check_manifest(cache, folder, seed):
    """Read a cache with a damaged manifest: an error, or the data as they were."""
    rng = np.random.default_rng(seed)
    original = (cache / MANIFEST).read_bytes()
    if rng.integers(2):
        data = mutate_bytes(original, rng)
    else:
        data = json.dumps(replace_value(json.loads(original), rng)).encode()
    (folder / MANIFEST).write_bytes(data)
    try:
        contents(folder)
    except (FileFormatError, FileNotFoundError) as error:
        assert str(folder) in str(error)
    finally:
        shutil.copy(cache / MANIFEST, folder / MANIFEST)


def replace_value(content, rng):
    """Replace or delete one value somewhere in JSON content."""
    node = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(node[key], dict | list) and node[key] and rng.integers(3):
            node = node[key]
            continue
        if rng.integers(4):
            node[key] = VALUES[int(rng.integers(len(VALUES)))]
        else:
            del node[key]
        return content


def copy_of(cache, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(cache, folder)
    return folder


def test_damaged_shards(cache, tmp_path):
    folder = copy_of(cache, tmp_path)
    for seed in range(150):
        check_shard(cache, folder, seed, same_size=seed % 3 > 0)


def test_damaged_manifests(cache, tmp_path):
    folder = copy_of(cache, tmp_path)
    for seed in range(150):
        check_manifest(cache, folder, seed)


@pytest.mark.slow
def test_thousands_of_damages(cache, tmp_path):
    folder = copy_of(cache, tmp_path)
    for seed in range(1000, 3500):
        check_shard(cache, folder, seed, same_size=seed % 3 > 0)
        check_manifest(cache, folder, seed)


def test_features_that_are_not_finite_are_broken_samples(cache, tmp_path):
    from blip2_jax.data.feature_manifest import read_manifest
    from blip2_jax.data.record_files import RecordFiles, write_records

    folder, files = copy_of(cache, tmp_path), RecordFiles()
    shard = min(folder.glob("*.array_record"))
    records = [files.read(shard, index, 16) for index in range(16)]
    nan = np.array([np.nan], np.float32).tobytes()[2:] * 2
    records[3] = nan * (len(records[3]) // 4)
    records[5] = records[5][:-1]
    size, _ = write_records(shard, records)
    assert size == read_manifest(folder).shard_bytes[0]
    source = CachedFeaturesSource(str(folder))
    with pytest.raises(BrokenSample, match="not finite"):
        source.load_features(1)
    with pytest.raises(BrokenSample, match="bytes of features, not"):
        source.load_features(2)
    source.load_features(3)
