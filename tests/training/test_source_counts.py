"""Rows and broken samples of each source in the log of a run."""

import os
import re
import signal

import pytest

from blip2_jax.data.mixture import Mixture, short_names
from blip2_jax.data.pipeline import training_batches
from blip2_jax.data.shapes.source import ShapesSource
from blip2_jax.training import loop as loops
from blip2_jax.training import tasks
from blip2_jax.training.loop import train
from blip2_jax.training.metrics_log import read_metrics
from blip2_jax.training.source_counts import SourceCount, describe
from tests.support import toy_task
from tests.support.generated_data import tar_members, write_tar


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return a run on `shapes` and on tars of which two images in twenty are broken."""
    monkeypatch.setitem(tasks.TASKS, "stage1", toy_task.make_toy)
    members = tar_members(range(20))
    members["00003.jpg"] = members["00004.jpg"] = b""
    (tmp_path / "web").mkdir()
    write_tar(tmp_path / "web" / "0.tar", members)
    config = toy_task.get_config().unlock()
    config.data.train = (
        {
            "kind": "tars",
            "paths": str(tmp_path / "web" / "*.tar"),
            "index_directory": str(tmp_path / "index"),
            "weight": 3.0,
        },
        {"kind": "shapes", "split": "train", "size": 64, "weight": 1.0},
    )
    config.data.max_broken_share = 0.5
    return config.lock()


def counts_of(run):
    """Return the counts in every line of a log, by step."""
    return {
        line["step"]: {n: v for n, v in line.items() if "source/" in n or "broken" in n}
        for line in read_metrics(run)
    }


@pytest.mark.parametrize("stop_at", [7, 10])
def test_counts_are_exact_also_when_a_run_is_continued(
    config, tmp_path, monkeypatch, capfd, stop_at
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(config, whole) == 0
    line = r"rows so far: web 6( \(\d broken\))?, shapes:train 2\n"
    assert re.search(line, capfd.readouterr().err)
    counts = counts_of(whole)
    stream = training_batches(
        config.data, "image_text", seed=config.seed, batch_size=config.batch_size
    )
    for step in range(1, config.steps + 1):
        next(stream)
        broken = stream.broken_stats.counts.total()
        assert counts[step] == {
            "broken_samples": broken,
            "source/web/rows": 6 * step,
            "source/web/broken": broken,
            "source/shapes:train/rows": 2 * step,
            "source/shapes:train/broken": 0,
        }
    stream.close()
    assert broken > 10
    launch = loops.Loop.launch_step

    def launch_and_signal(self, step):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return launch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(loops.Loop, "launch_step", launch_and_signal)
        assert train(config, stopped) == 128 + signal.SIGTERM
    assert train(config, stopped) == 0
    assert counts_of(stopped) == counts


def test_rows_are_a_function_of_the_position():
    sources = [ShapesSource("train", size) for size in (72, 20, 8)]
    mixture = Mixture(sources, None)
    drawn = [0, 0, 0]
    for position in range(40_000):
        if position % 3_333 == 0:
            assert mixture.rows_before(position) == tuple(drawn)
        drawn[mixture.locate(position).source] += 1


def test_names_are_short_and_differ():
    sources = [ShapesSource("train", 4) for _ in range(6)]
    names = (
        "tars:data/cc3m/*.tar",
        "tars:s3://bucket/cc3m/0*.tar,s3://bucket/b/*.tar",
        "annotations:data/coco_karpathy_train.json",
        "train part of csv:captions.txt",
        "shapes:train",
        "shapes:train",
    )
    for source, name in zip(sources, names, strict=True):
        source.name = name
    assert short_names(sources) == [
        "cc3m",
        "cc3m (2)",
        "coco_karpathy_train",
        "captions",
        "shapes:train",
        "shapes:train (2)",
    ]


def test_counts_are_described_in_one_line():
    counts = [SourceCount("coco", 1200, 3), SourceCount("cc3m", 5000, 0)]
    assert describe(counts) == "coco 1,200 (3 broken), cc3m 5,000"
