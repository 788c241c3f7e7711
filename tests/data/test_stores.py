"""Data on an object store: equal to local data in every layout, whatever fails."""

import pickle

import numpy as np
import pytest

from blip2_jax.data.pipeline import training_batches
from blip2_jax.data.sources.layouts import detect_layout
from blip2_jax.data.sources.registry import build_source
from blip2_jax.parallel import store_retries
from blip2_jax.parallel.store_retries import StoreError, retry_count
from tests.support import layouts
from tests.support.generated_data import bert_directory, tars_spec


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def contents(source):
    """Return key, captions and pixels of all records."""
    return [
        (record.key, record.captions, source.load_image(index).tobytes())
        for index, record in enumerate(map(source.record, range(len(source))))
    ]


@pytest.mark.parametrize(
    "layout", [name for name in layouts.WRITERS if name != "array_record"]
)
def test_every_layout_is_read_from_a_store(layout, s3, tmp_path):
    if layout == "saved_dataset":
        pytest.importorskip("datasets")
    title, write = layouts.WRITERS[layout]
    path = write(tmp_path / "data")
    remote = s3.put(tmp_path / "data", "my data")
    remote += str(path).removeprefix(str(tmp_path / "data"))
    found = detect_layout(remote, default_split="train")
    expected = detect_layout(path, default_split="train")
    assert found.title == title
    assert "s3://" in str(found.spec)
    source, local = build_source(found.spec), build_source(expected.spec)
    assert contents(pickle.loads(pickle.dumps(source))) == contents(local)
    digests, local_digests = source.content(), local.content()
    for part in digests:
        if not part.endswith("times"):
            assert digests[part] == local_digests[part]


def test_array_records_on_a_store_are_refused(s3, tmp_path):
    path = layouts.WRITERS["array_record"][1](tmp_path / "data")
    remote = s3.put(tmp_path / "data", "data")
    remote += str(path).removeprefix(str(tmp_path / "data"))
    with pytest.raises(Exception, match="local disks only"):
        detect_layout(remote)


def batches(spec, tmp_path, count, workers=0):
    options = {
        "train": (spec,),
        "image": {"size": 28},
        "tokenizer": {"qformer": bert_directory(tmp_path / "bert")},
        "workers": workers,
    }
    stream = training_batches(options, "image_text", seed=3, batch_size=4)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


def assert_equal(left, right):
    for ours, theirs in zip(left, right, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])


def test_tars_are_read_by_ranges(flaky_s3, tmp_path):
    bucket, proxy = flaky_s3
    spec = tars_spec(tmp_path)
    expected = batches(spec, tmp_path, 3)
    (tmp_path / "tars").mkdir()
    for path in tmp_path.glob("*.tar"):
        path.rename(tmp_path / "tars" / path.name)
    remote = bucket.put(tmp_path / "tars", "tars")
    spec = {**spec, "paths": f"{remote}/*.tar"}
    batches(spec, tmp_path, 1)  # makes the index
    del proxy.requests[:]
    assert_equal(batches(spec, tmp_path, 3), expected)
    size = max(path.stat().st_size for path in (tmp_path / "tars").iterdir())
    assert (
        max(answer for _, path, answer in proxy.requests if ".tar" in path) < size / 4
    )


@pytest.mark.parametrize("kind", ["tars", "csv", "parquet"])
def test_failures_change_no_batch_and_are_counted(flaky_s3, tmp_path, kind):
    bucket, proxy = flaky_s3
    _, write = layouts.WRITERS[kind]
    path = write(tmp_path / "data")
    remote = bucket.put(tmp_path / "data", "data")
    remote += str(path).removeprefix(str(tmp_path / "data"))
    expected = batches(detect_layout(path).spec, tmp_path, 3)
    before, proxy.fail_every = retry_count(), 4
    assert_equal(batches(detect_layout(remote).spec, tmp_path, 3), expected)
    assert proxy.failures and retry_count() > before


def test_an_outage_is_no_broken_sample(flaky_s3, tmp_path, monkeypatch):
    bucket, proxy = flaky_s3
    monkeypatch.setenv(store_retries.PATIENCE, "0.5")
    layouts.write_csv(tmp_path / "data")
    remote = bucket.put(tmp_path / "data", "data")
    source = {
        "train": (detect_layout(remote).spec,),
        "image": {"size": 28},
        "tokenizer": {"qformer": bert_directory(tmp_path / "bert")},
        "prefetch": 1,
    }
    stream = training_batches(source, "image_text", seed=3, batch_size=4)
    try:
        next(stream)
        proxy.outage = True
        with pytest.raises(StoreError, match="Images/"):
            for _ in range(10):
                next(stream)
        assert not stream.broken_stats.counts
    finally:
        stream.close()


def test_retries_of_workers_are_counted(flaky_s3, tmp_path):
    bucket, proxy = flaky_s3
    layouts.write_csv(tmp_path / "data")
    spec = detect_layout(bucket.put(tmp_path / "data", "data")).spec
    before, proxy.fail_every = retry_count(), 3
    batches(spec, tmp_path, 2, workers=1)
    assert retry_count() > before


def test_a_missing_image_on_a_store_is_a_broken_sample(s3, tmp_path):
    layouts.write_csv(tmp_path / "data")
    remote = s3.put(tmp_path / "data", "data")
    source = build_source(detect_layout(remote).spec)
    key = source.record(0).key
    s3.client().delete_object(Bucket=s3.bucket, Key=f"data/Images/{key}")
    with pytest.raises(Exception, match="missing image"):
        source.load_image(0)
