"""Our contestants at small size; those of PyTorch need its interpreters."""

import importlib.metadata
import io
import sys
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import harness, image_pipeline, ours, stage1_step, stage2_step, startup
from blip2_jax.models import presets


def stage2_sizes(name):
    return stage2_step.sizes_of(name, True, 0.0)


def test_a_stage1_worker_steps_and_replays_negatives():
    settings = {"sizes": stage1_step.sizes_of("vit_s", True, 0.0), "rows": 4, "text": 8}
    with harness.Worker(
        "ours", sys.executable, "ours", "training", settings, 1
    ) as worker:
        negatives = [[1, 2, 3, 0], [3, 0, 1, 2]]
        losses = [worker.ask("compare", negatives=negatives) for _ in range(2)]
        assert worker.ask("gigaflops") > 0 and worker.peak() > 0.1
        assert worker.ask("gemm", size=64, times=1) > 0
    first = np.log(4) + np.log(2) + np.log(stage1_step.TINY_QFORMER.vocab_size)
    assert losses[0] == pytest.approx(first, rel=0.1) and losses[1] < losses[0]


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_a_stage2_step(name):
    training = ours.Training(stage2_sizes(name), 2, **stage2_step.TOKENS[name])
    assert training.compare() == pytest.approx(np.log(100), rel=0.1)
    assert training.step() > 0


def test_a_stage2_step_in_half_precision_with_random_weights(tmp_path):
    tokens = stage2_step.TOKENS["t5"]
    training = ours.Training(
        stage2_sizes("t5"), 2, **tokens, precision="bfloat16", drawn=True
    )
    dtypes = lambda tree: {array.dtype.name for array in jax.tree.leaves(tree)}
    assert dtypes(training.frozen) == {"bfloat16"}
    assert dtypes(training.state.trainable) == {"float32"}
    assert training.compare() == pytest.approx(np.log(100), rel=0.1)
    assert all(count > 0 for count in training.counted(**tokens)[:2])
    training.profile(str(tmp_path))
    assert list(tmp_path.glob("**/*.xplane.pb"))


def test_generation_reads_all_weights_and_cache():
    contestant = ours.Generation(stage2_sizes("opt"), 2, (2, 20), beams=1, tokens=6)
    ids = contestant.ids()
    assert np.shape(ids) == (2, 6) and contestant.generate() > 0
    config = stage2_step.TINY_LANGUAGE["opt"]
    blocks = config.depth * (4 * 32 * 32 + 2 * 32 * 64 + 4 * 32 + 64 + 32 + 4 * 32)
    weights = blocks + config.vocab_size * 32 + 2 * 32
    tokens = stage1_step.TINY_QFORMER.num_queries + 2 + 6 / 2
    cache = 2 * config.depth * 2 * tokens * 32
    assert contestant.gigabytes() == pytest.approx(4e-9 * (weights + cache))


def test_exported_names_are_those_of_transformers(tmp_path):
    contestant = ours.Generation(stage2_sizes("opt"), 1, (2,), beams=2, tokens=2)
    contestant.export(str(tmp_path / "weights.safetensors"))
    from safetensors import safe_open

    with safe_open(tmp_path / "weights.safetensors", "numpy") as file:
        names = set(file.keys())
    assert "vision_model.post_layernorm.weight" in names
    assert "language_model.model.decoder.layers.1.fc1.weight" in names


def test_reranking_scores_every_pair():
    config = presets.Blip2Config(
        stage1_step.TINY_VISIONS["features"], stage1_step.TINY_QFORMER
    )
    contestant = ours.Reranking(presets.to_plain(config), 2, 3, 5)
    assert np.shape(contestant.scores()) == (2, 3)


@pytest.fixture
def photos(tmp_path):
    """Write a tar of three JPEGs; return the settings of the image pipeline."""
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for number in range(3):
            file = io.BytesIO()
            Image.new("RGB", (60, 40), (number, 0, 0)).save(file, "JPEG")
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)
    tar_of_two = tmp_path / "two.tar"
    files = image_pipeline.write_photos([tmp_path / "photos.tar"], tar_of_two, 2, 90)
    assert Image.open(io.BytesIO(files[1][1])).size == (90, 60)
    return {"tars": [str(tar_of_two)], "count": 2, "size": 32}


def test_photos_become_batches(photos):
    assert ours.Images(**photos).load(rows=2) > 0
    path = ours.TrainingPath(**photos, rows=2)
    assert path.load() > 0
    path.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", image_pipeline.LOADERS)
def test_the_loaders_of_torch_read_all_photos(photos, kind):
    for name in ("torch", "torchvision", "webdataset"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
    with harness.Worker(
        kind, sys.executable, "torch_loaders", kind, photos, 1
    ) as worker:
        assert worker.ask("load", rows=2) > 0  # it counts the photos
        assert worker.ask("versions")


@pytest.mark.slow
def test_a_start_is_timed(tmp_path):
    first, second = (
        startup.first_step(
            "configs/shapes_stage1.py", tmp_path / "compiled", tmp_path / name
        )
        for name in "ab"
    )
    assert 0 < second[0] < first[0]
    for seconds, compiling in (first, second):
        assert 0 < compiling < seconds
    assert second[1] < first[1]
