"""The source of cached features, against the source of the images."""

import dataclasses
import json
import pickle

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.images import evaluation_image, training_image
from blip2_jax.data.order import RngPurpose, position_rng
from blip2_jax.data.pipeline import training_batches
from blip2_jax.data.sources.base import BrokenSample, ImageKind
from blip2_jax.data.sources.cached_features import CachedFeaturesSource
from blip2_jax.data.sources.layouts import detect_layout
from blip2_jax.data.sources.registry import build_source
from blip2_jax.parallel.files import FileFormatError
from tests.support.feature_caches import cache_job, write_cache
from tests.support.tiny_runs import tiny_config

SHAPES = {"kind": "shapes", "split": "train", "size": 12}


def config_with(*sources):
    config = tiny_config("stage1").unlock()
    config.data.train = sources
    return config


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    out = tmp_path_factory.mktemp("cache")
    config = config_with(SHAPES)
    write_cache(out, config, records_per_shard=4)
    return out


def encoded(config, images):
    """Return the features of some images, in batches of four as the job."""
    job = cache_job("unused", config)
    images = [*images, *[np.zeros_like(images[0])] * (-len(images) % 4)]
    batches = [np.stack(images[i : i + 4]) for i in range(0, len(images), 4)]
    features = [np.asarray(job._encoder.encode(batch)) for batch in batches]
    return np.concatenate(features).astype(ml_dtypes.bfloat16)


def test_records_are_those_of_the_images(cache):
    images, source = build_source(SHAPES), CachedFeaturesSource(str(cache))
    assert source.image_kind is ImageKind.FEATURES and len(source) == len(images)
    assert source.keys() == images.keys() and source.num_images == images.num_images
    assert source.group_size == images.group_size
    pixels = [evaluation_image(images.load_image(i), 32) for i in range(12)]
    expected = encoded(config_with(SHAPES), pixels)
    copy = pickle.loads(pickle.dumps(source))
    for index in (11, 0, 5):
        assert source.record(index) == images.record(index)
        features = copy.load_features(index)
        assert features.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(features, expected[index])
    assert sorted(path.name for path in cache.glob("*.array_record")) == [
        f"features-0000{shard}-of-00003.array_record" for shard in range(3)
    ]


def test_the_layout_is_detected(cache, tmp_path):
    layout = detect_layout(str(cache))
    assert layout.spec == {"kind": "cached_features", "path": str(cache)}
    assert "cached features, 12 images" in str(layout).replace("; ", ", ")
    incomplete = tmp_path / "incomplete"
    incomplete.mkdir()
    (incomplete / "job.json").write_text("{}")
    (incomplete / "features-00000-of-00002.array_record").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="not complete; run the same"):
        detect_layout(str(incomplete))


def test_broken_images_and_records_stay_in_their_places(tmp_path):
    names = [f"{number}.png" for number in range(6)]
    for number, name in enumerate(names):
        Image.new("RGB", (40, 40), (40 * number, 0, 9)).save(tmp_path / name)
    (tmp_path / "2.png").write_bytes(b"broken")
    rows = [{"image": name, "caption": [name, "two"]} for name in names]
    rows[4]["caption"] = None
    (tmp_path / "data.json").write_text(json.dumps(rows))
    spec = {
        "kind": "annotations",
        "path": str(tmp_path / "data.json"),
        "images": str(tmp_path),
    }
    images = build_source(spec)
    manifest = write_cache(tmp_path / "cache", config_with(spec))
    assert manifest.broken == {"malformed row": 1, "not an image": 1}
    listed = (tmp_path / "cache" / "broken.jsonl").read_text().splitlines()
    assert [json.loads(line)["cause"] for line in listed] == [
        "not an image",
        "malformed row",
    ]
    source = CachedFeaturesSource(str(tmp_path / "cache"))
    assert len(source) == len(images) == 6
    for index in range(6):
        for read in ("record", "load_features"):
            expected = images.load_image if read == "load_features" else images.record
            try:
                expected(index)
            except BrokenSample as error:
                with pytest.raises(BrokenSample) as raised:
                    getattr(source, read)(index)
                assert raised.value.cause == error.cause
                assert raised.value.key == error.key
            else:
                getattr(source, read)(index)


def test_records_that_share_an_image_share_its_features(tmp_path):
    questions = {"kind": "shapes", "split": "train", "size": 4, "texts": "questions"}
    spec = {"kind": "per_question", "of": questions}
    manifest = write_cache(tmp_path, config_with(spec), records_per_shard=4)
    images, source = build_source(spec), CachedFeaturesSource(str(tmp_path))
    assert len(source) == len(images) > 4 and source.num_images == 4
    assert manifest.records == len(images)
    by_image = {}
    for index in range(len(source)):
        assert source.record(index) == images.record(index)
        features = source.load_features(index)
        first = by_image.setdefault(source.record(index).image_id, features)
        np.testing.assert_array_equal(first, features)
    reports = [json.loads(p.read_text()) for p in tmp_path.glob("*.report.json")]
    assert sum(report["features"] for report in reports) == 4


def test_parts_are_the_sources(tmp_path):
    other = {"kind": "shapes", "split": "validation", "size": 4}
    write_cache(tmp_path, config_with(SHAPES, other), records_per_shard=4)
    both = CachedFeaturesSource(str(tmp_path))
    second = CachedFeaturesSource(str(tmp_path), part=1)
    images = build_source(other)
    assert (len(both), len(second)) == (16, 4)
    assert [second.record(i) for i in range(4)] == [images.record(i) for i in range(4)]
    np.testing.assert_array_equal(second.load_features(3), both.load_features(15))
    assert both.record(15).image_id == 15
    with pytest.raises(ValueError, match="has 2 parts, from 0, and no part 2"):
        CachedFeaturesSource(str(tmp_path), part=2)


def test_texts_are_replaced_by_key(cache, tmp_path):
    keys = CachedFeaturesSource(str(cache)).keys()
    rows = [{"image": key, "caption": f"new {key}"} for key in keys[:7]]
    (tmp_path / "texts.json").write_text(json.dumps(rows))
    texts = {
        "kind": "annotations",
        "path": str(tmp_path / "texts.json"),
        "images": str(tmp_path),
    }
    source = CachedFeaturesSource(str(cache), texts=texts)
    assert source.record(2).captions == (f"new {keys[2]}",)
    source.load_features(2)
    with pytest.raises(BrokenSample, match="no text for features"):
        source.record(8)


def test_crops_are_functions_of_seed_record_and_crop(tmp_path):
    config = config_with(SHAPES)
    config.data.image.flip = 1.0
    write_cache(tmp_path, config, crops=3, seed=5)
    images, source = build_source(SHAPES), CachedFeaturesSource(str(tmp_path))
    data = cache_job("unused", config).options.image
    for index, crop in ((0, 0), (7, 2)):
        rng = position_rng(5, 3 * index + crop, RngPurpose.IMAGE)
        pixels = images.load_image(index, data.at_least)
        image = training_image(pixels, dataclasses.replace(data, size=32), rng)
        job = cache_job("unused", config, crops=3, seed=5)
        expected = np.asarray(job._encoder.encode(np.stack([image] * 3)))[0]
        stored = source.load_features(index, crop)
        np.testing.assert_array_equal(stored, expected.astype(ml_dtypes.bfloat16))
    with pytest.raises(ValueError, match="holds 3 random crops of each image"):
        EvaluationSet([{"kind": "cached_features", "path": str(tmp_path)}], 32)


@pytest.mark.parametrize("crops", [0, 3])
def test_batches_are_functions_of_seed_and_position(tmp_path, crops):
    config = config_with(SHAPES)
    write_cache(tmp_path, config, crops=crops)
    spec = {"kind": "cached_features", "path": str(tmp_path)}
    options = {**dict(config.data.items()), "train": (spec,), "prefetch": 1}
    batches = []
    for start, workers in ((0, 0), (1, 1)):
        stream = training_batches(
            {**options, "workers": workers},
            "image_text",
            seed=3,
            batch_size=8,
            start_step=start,
        )
        batches.append([next(stream) for _ in range(2 - start)])
        stream.close()
    first, resumed = batches[0][1], batches[1][0]
    assert first["features"].dtype == resumed["features"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(first["features"], resumed["features"])
    assert first["_key"] == resumed["_key"]
    source = CachedFeaturesSource(str(tmp_path))
    drawn = set()
    for batch in batches[0]:
        for key, features in zip(batch["_key"], batch["features"], strict=True):
            index = source.keys().index(key)
            (crop,) = (
                c
                for c in range(max(crops, 1))
                if (source.load_features(index, c) == features).all()
            )
            drawn.add(crop)
    assert drawn == set(range(max(crops, 1)))


def test_a_shard_of_another_size_is_refused(tmp_path):
    write_cache(tmp_path, config_with(SHAPES), records_per_shard=4)
    shard = tmp_path / "features-00001-of-00003.array_record"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1000])
    with pytest.raises(FileFormatError, match=r"00001-of-00003.* is truncated"):
        CachedFeaturesSource(str(tmp_path))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="00001-of-00003"):
        CachedFeaturesSource(str(tmp_path))


def test_only_missing_shards_are_written_with_the_same_bytes(tmp_path):
    config = config_with(SHAPES)
    write_cache(tmp_path, config, records_per_shard=4)
    files = sorted(tmp_path.glob("*.array_record"))
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    files[1].unlink()
    write_cache(tmp_path, config, records_per_shard=4)
    after = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    assert [data for data, _ in after] == [data for data, _ in before]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]
    with pytest.raises(ValueError, match="dtype is 'int8', was 'bf16'"):
        write_cache(tmp_path, config, records_per_shard=4, dtype="int8")


def test_object_stores_are_refused():
    with pytest.raises(ValueError, match="copy the directory there"):
        CachedFeaturesSource("gs://bucket/cache")
