"""CapFilt from pictures to tars, with tiny models of random weights."""

import dataclasses
import json
import tarfile

import numpy as np
import pytest

from blip2_jax.capfilt.counts import sum_counts
from blip2_jax.capfilt.job import CapFiltJob, CapFiltOptions
from blip2_jax.capfilt.models import ModelName, Sampling
from blip2_jax.data.sources.registry import build_source
from blip2_jax.parallel.shard_jobs import OtherSettings, ShardsFailed, run_shards
from tests.support.generated_data import tar_members, write_tar
from tests.support.tiny_runs import make_run

SHAPES = {"kind": "shapes", "split": "train", "size": 12, "count": 1}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Return options with a stage-1 model as captioner and ranker."""
    directory = tmp_path_factory.mktemp("model")
    make_run(directory, "stage1", factor=30)
    model = ModelName(str(directory))
    sampling = Sampling(num_captions=3, max_new_tokens=8)
    return CapFiltOptions(model, model, sampling=sampling)


def make_job(directory, options, specs=(SHAPES,), **sizes):
    return CapFiltJob(directory, specs, options, **{"shard_size": 5} | sizes)


def read_tar(path):
    """Return the JSON of each record of a tar by its key."""
    with tarfile.open(path) as tar:
        return {
            member.name.partition(".")[0]: json.load(tar.extractfile(member))
            for member in tar.getmembers()
            if member.name.endswith(".json")
        }


def tar_bytes(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.tar"))}


@pytest.fixture(scope="module")
def written(tmp_path_factory, options):
    """Return the output of a job that ran without interruption, and its reports."""
    directory = tmp_path_factory.mktemp("capfilt")
    return directory, run_shards(make_job(directory, options, batch_size=4))


def test_tars_hold_the_images_with_their_best_captions(written, tmp_path):
    directory, reports = written
    source = build_source(SHAPES)
    tars = build_source(
        {
            "kind": "tars",
            "paths": f"{directory}/*.tar",
            "index_directory": str(tmp_path),
        }
    )
    assert [report["images"] for report in reports] == [5, 5, 2]
    assert len(tars) == len(source) == 12
    counts = sum_counts(reports).captions
    assert counts["web"]["all"] == 12
    generated = counts["generated"]
    assert generated["all"] + generated["merged"] + generated["empty"] == 36
    contents = {}
    for path in sorted(directory.glob("*.tar")):
        contents |= read_tar(path)
    for index, content in enumerate(contents.values()):
        np.testing.assert_array_equal(tars.load_image(index), source.load_image(index))
        assert tars.record(index).captions == tuple(content["captions"])
        assert content["key"] == source.record(index).key
        candidates = content["candidates"]
        assert candidates[0]["text"] == source.record(index).captions[0]
        assert candidates[0]["origin"] == "web"
        assert 1 <= sum(each["times"] for each in candidates) <= 4
        best = sorted((each["score"] for each in candidates), reverse=True)[:2]
        assert content["scores"] == best


def test_a_job_that_stops_in_a_shard_continues_with_the_same_bytes(
    written, options, tmp_path, monkeypatch
):
    job = make_job(tmp_path, options, batch_size=4)
    batches = []
    write_batch = CapFiltJob._write_batch

    def stop_at_third(self, *arguments):
        batches.append(len(batches))
        if len(batches) == 4:  # the second batch of the second shard
            raise KeyboardInterrupt
        write_batch(self, *arguments)

    monkeypatch.setattr(CapFiltJob, "_write_batch", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        run_shards(job)
    assert list(tar_bytes(tmp_path)) == ["000000.tar"]
    monkeypatch.undo()
    run_shards(make_job(tmp_path, options, batch_size=4))
    assert tar_bytes(tmp_path) == tar_bytes(written[0])


def test_captions_depend_on_neither_batches_nor_shards(written, options, tmp_path):
    run_shards(make_job(tmp_path, options, batch_size=3, shard_size=7))
    parts = [[], []]
    for part, directory in zip(parts, (written[0], tmp_path), strict=True):
        for path in sorted(directory.glob("*.tar")):
            part += read_tar(path).items()
    for (key, content), (other_key, other) in zip(*parts, strict=True):
        assert key == other_key
        texts = [
            [each["text"] for each in item["candidates"]] for item in (content, other)
        ]
        assert texts[0] == texts[1]
        scores = [
            [each["score"] for each in item["candidates"]] for item in (content, other)
        ]
        np.testing.assert_allclose(*scores, atol=2e-6)


def test_image_files_are_copied_and_broken_ones_are_counted(options, tmp_path):
    members = tar_members(range(6))
    members["00002.jpg"] = members["00002.jpg"][:-200]
    members["00004.json"] = b"{"
    (tmp_path / "web").mkdir()
    write_tar(tmp_path / "web" / "00000.tar", members)
    spec = {
        "kind": "tars",
        "paths": str(tmp_path / "web" / "*.tar"),
        "index_directory": str(tmp_path / "index"),
    }
    with pytest.raises(ShardsFailed, match="2 of the 6 records of shard 0"):
        run_shards(make_job(tmp_path / "out", options, [spec], shard_size=9))
    one = dataclasses.replace(options, score="itm", keep=1)
    job = make_job(tmp_path / "more", one, [spec], max_broken_share=0.5)
    first, second = run_shards(job)
    assert first["broken"] == {"truncated image": 1, "broken json": 1}
    assert "00000/00002" in first["broken_places"][0]
    assert second["images"] == 1 and not second["broken"]
    with tarfile.open(tmp_path / "more" / "000000.tar") as tar:
        images = [m for m in tar.getmembers() if m.name.endswith(".jpg")]
        numbers = [0, 1, 3]
        assert [m.name for m in images] == [f"{n:09d}.jpg" for n in numbers]
        for member, number in zip(images, numbers, strict=True):
            data = tar.extractfile(member).read()
            assert data == members[f"{number:05d}.jpg"]
    content = read_tar(tmp_path / "more" / "000000.tar")["000000003"]
    assert content["image_id"] == 1003 and len(content["captions"]) == 1
    assert all(0 <= each["score"] <= 1 for each in content["candidates"])
    with pytest.raises(OtherSettings, match="keep is 2, was 1"):
        run_shards(make_job(tmp_path / "more", options, [spec]))


def test_models_and_sources_that_do_not_fit_are_refused(options, tmp_path):
    texts = {"kind": "shapes", "split": "train", "size": 4, "images": False}
    with pytest.raises(ValueError, match="has no images"):
        make_job(tmp_path, options, [texts])
    options = dataclasses.replace(options, ranker=ModelName("shapes"))
    with pytest.raises(ValueError, match="a ranker is CLIP or a stage-1 model"):
        run_shards(make_job(tmp_path, options))
    assert not list(tmp_path.glob("*.tar"))
