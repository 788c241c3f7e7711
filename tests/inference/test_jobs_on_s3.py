"""Jobs over shards whose input and output are on an object store."""

import os

import pytest

from blip2_jax.inference import image_sets
from blip2_jax.parallel import shard_jobs
from blip2_jax.parallel.paths import as_path
from tests.support.object_stores import s3_server, use_store
from tests.support.shard_squares import Squares


@pytest.fixture(scope="module")
def server():
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server, monkeypatch):
    with use_store(server, monkeypatch) as bucket:
        yield bucket


def test_shards_are_written_once_and_nothing_else_is_left(bucket):
    job = Squares(as_path(f"{bucket.root}/out"), fail_at=3)
    with pytest.raises(shard_jobs.ShardsFailed, match="no square"):
        shard_jobs.run_shards(job)
    job.fail_at = -1
    assert len(shard_jobs.run_shards(job, processes=2)) == 5
    names = [f"out/{shard:05d}.txt" for shard in range(5)]
    assert bucket.names() == sorted(
        ["out/job.json", *names, *(f"{name}.report.json" for name in names)]
    )
    assert (job.output / "00004.txt").read_text() == "16"
    with pytest.raises(shard_jobs.OtherSettings):
        shard_jobs.run_shards(Squares(job.output, power=3))


def test_images_on_a_store_are_listed_and_read(bucket, tmp_path):
    for name in ("a/1.jpg", "b.png", "b.txt", "c d.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.fsencode(name))
    root, output = bucket.put(tmp_path, "in"), as_path(f"{bucket.root}/out")
    image_sets.write_list([root], output)
    images = image_sets.open_images([root], output)
    names = images.names(0, len(images))
    assert names == ["a/1.jpg", "b.png", "c d.webp"]
    contents = [images.read(index, name) for index, name in enumerate(names)]
    assert contents == [*map(os.fsencode, names)]
    image_sets.write_list([f"{root}/*.png"], output)
    images = image_sets.open_images([f"{root}/*.png"], output)
    assert images.names(0, len(images)) == ["b.png"]
