"""A directory that has trained is continued or refused; it begins anew if told to."""

import json
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from blip2_jax.convert.files.checkpoint_files import SourceError
from blip2_jax.convert.model_source import ModelSource
from blip2_jax.convert.native_folder import write_folder
from blip2_jax.training import profiled_steps, run_lock, tasks
from blip2_jax.training.checkpoints import CheckpointError, Checkpoints
from blip2_jax.training.frozen import WeightsError, verify_manifest
from blip2_jax.training.loop import Loop, train
from blip2_jax.training.metrics_log import read_metrics
from blip2_jax.training.run_directory import set_aside
from blip2_jax.training.run_lock import RunLock, RunLocked
from blip2_jax.training.setup import Evaluation, set_up
from blip2_jax.training.train_config import ConfigError
from tests.support import toy_task
from tests.support.golden_stage2 import config as golden_config
from tests.training.test_checkpoints import damage_largest_file


@pytest.fixture(autouse=True)
def stage1_is_a_toy(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "stage1", toy_task.make_toy)


def config(**changes):
    result = toy_task.get_config().unlock()
    result.update_from_flattened_dict({"steps": 4, "checkpoint.every": 2, **changes})
    return result.lock()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Train once for all tests of this file."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, "stage1", toy_task.make_toy)
        train(config(), directory)
    return directory


@pytest.fixture
def run(finished_run, tmp_path):
    """Return the directory of a run with checkpoints 2 and 4, at its end."""
    return shutil.copytree(finished_run, tmp_path / "run")


def contents(directory):
    """Return the bytes of every file but the lock."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def steps_of(directory):
    return [line["step"] for line in read_metrics(directory)]


def test_a_checkpoint_that_cannot_be_read_now_stays_and_is_used_later(run):
    """A link to itself is an error of reading even for the superuser."""
    (run / "best.json").unlink(missing_ok=True)
    digests = run / "checkpoints" / "4" / "digests.json"
    digests.rename(run / "kept")
    digests.symlink_to(digests)
    before = contents(run)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"4 cannot be read now \(OSError"):
            train(config(), run)
        assert contents(run) == before
    digests.unlink()
    (run / "kept").rename(digests)
    assert train(config(), run) == 0
    assert not (run / "damaged").exists()


def test_memory_that_is_short_while_restoring_is_no_damage(run, monkeypatch):
    def fail(*_):
        raise MemoryError("18 GB")

    before = contents(run)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_restore_step", fail)
        with pytest.raises(CheckpointError, match=r"cannot be read now \(MemoryError"):
            train(config(), run)
    assert contents(run) == before
    assert train(config(), run) == 0


def test_a_run_with_damaged_checkpoints_begins_anew_only_when_told_to(run):
    for step in ("2", "4"):
        damage_largest_file(run / "checkpoints" / step, "flip")
    metrics = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"\[2, 4\] of .* is intact"):
        train(config(), run)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"damaged/ holds 2, 4.*--restart"):
            train(config(), run)
    assert (run / "metrics.jsonl").read_bytes() == metrics
    (run / "evaluation_captioning.json").write_text("{}")  # scores of the former run
    (run / "notes.txt").write_text("by the user")
    assert train(config(steps=3), run, restart=True) == 0
    assert steps_of(run) == [1, 2, 3]
    assert (run / "notes.txt").exists()
    earlier = run / "earlier" / "1"
    assert (earlier / "evaluation_captioning.json").exists()
    assert (earlier / "metrics.jsonl").read_bytes() == metrics
    assert sorted(path.name for path in (earlier / "damaged").iterdir()) == ["2", "4"]
    assert train(config(), run, restart=True) == 0
    assert steps_of(run / "earlier" / "2") == [1, 2, 3]


def test_all_that_a_run_writes_is_set_aside(tmp_path):
    changes = {
        "logging.negatives": True,
        "evaluation.every": 4,
        "evaluation.sources": ({"kind": "shapes", "split": "test"},),
        "evaluation.metric": "score",
    }
    samples = [{"caption": "a red circle"}]
    evaluator = lambda *_: lambda parameters: Evaluation({"score": 1.0}, samples)
    train(config(**changes), tmp_path, evaluator)
    (tmp_path / profiled_steps.FOLDER).mkdir()  # a profile takes ten seconds
    for log in ("metrics", "negatives", "starts", "samples"):
        path = tmp_path / f"{log}.jsonl"
        path.write_text("broken\n" + (path.read_text() if path.exists() else ""))
    train(config(**changes), tmp_path, evaluator)
    written = {path.name for path in tmp_path.iterdir()} - {"lock"}
    assert {"profile", "best.json", "samples.jsonl", "starts.broken"} <= written
    set_aside(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "earlier"}
    assert {path.name for path in (tmp_path / "earlier" / "1").iterdir()} == written


def test_a_run_whose_checkpoints_have_vanished_is_refused(run):
    shutil.rmtree(run / "checkpoints")
    metrics = (run / "metrics.jsonl").read_bytes()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="saved a checkpoint after step 4"):
            train(config(), run)
    (run / "last_checkpoint.json").unlink()  # as in runs of earlier versions
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl reaches step 4"):
        train(config(), run)
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path):
    run = set_up(config(), tmp_path)
    run.batches.close()
    run.checkpoints.close()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert train(config(), tmp_path) == 0
    assert steps_of(tmp_path) == [1, 2, 3, 4]


def test_a_run_killed_just_before_its_first_checkpoint_has_its_name_begins_again(
    tmp_path, monkeypatch
):
    complete = Checkpoints._complete

    def die(self):
        complete(self)
        raise OSError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_complete", die)
        with pytest.raises(OSError, match="killed here"):
            train(config(), tmp_path)
    (unfinished,) = (tmp_path / "checkpoints").iterdir()
    assert unfinished.name.startswith("2.orbax-checkpoint-tmp")
    assert train(config(), tmp_path) == 0
    assert json.loads((tmp_path / "last_checkpoint.json").read_text()) == {"step": 4}


@pytest.mark.parametrize("name", ["metrics.jsonl", "last_checkpoint.json"])
def test_remains_of_a_run_without_its_configuration_are_refused(run, name):
    for path in run.iterdir():
        if path.name != name:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = contents(run)
    with pytest.raises(ConfigError, match=rf"has {name} but no config\.json"):
        train(config(), run)
    assert contents(run) == before
    assert train(config(), run, restart=True) == 0


@pytest.mark.parametrize(
    "name", ["config.json", "sources.json", "last_checkpoint.json"]
)
@pytest.mark.parametrize("content", ["", '{"task', "[]", "{}"])
def test_a_damaged_file_of_a_run_is_named(run, name, content):
    if name == "last_checkpoint.json":
        shutil.rmtree(run / "checkpoints")
    (run / name).write_text(content)
    before = contents(run)
    with pytest.raises(ValueError, match=rf"run/{name}"):
        train(config(), run)
    assert contents(run) == before


def test_a_directory_in_use_is_refused_and_untouched(run):
    before = contents(run)
    with RunLock(run), pytest.raises(RunLocked, match="is in use: process"):
        train(config(), run)
    assert contents(run) == before
    assert train(config(), run) == 0


def test_a_run_whose_lock_was_taken_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "fcntl", None)  # no locks of the operating system
    monkeypatch.setattr(run_lock, "TOUCH_EVERY_S", 0.01)
    launch = Loop.launch_step

    def launch_and_lose(self, step):
        (tmp_path / run_lock.WRITTEN).write_text("{}")
        time.sleep(0.1)
        return launch(self, step)

    monkeypatch.setattr(Loop, "launch_step", launch_and_lose)
    with pytest.raises(RunLocked, match="no longer this process's"):
        train(config(), tmp_path)
    assert (tmp_path / run_lock.WRITTEN).read_text() == "{}"


def test_a_set_up_that_fails_leaves_no_lock(run):
    with pytest.raises(ConfigError, match=r"optimizer\.b2"):
        train(config(**{"optimizer.b2": 0.5}), run)
    assert train(config(), run) == 0


@pytest.mark.parametrize("line", ["xxx", "\0" * 50, '{"a": 1}'])
def test_a_broken_line_of_the_log_does_not_stop_a_run(run, line, capsys):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[1:], ""]))
    assert train(config(), run) == 0
    assert steps_of(run) == [1, 2, 3, 4]
    assert "metrics.jsonl: 1 lines cannot be read" in capsys.readouterr().err


def test_the_last_step_is_logged(tmp_path):
    train(config(log_every=3), tmp_path)
    assert steps_of(tmp_path) == [1, 3, 4]


def test_a_missing_array_of_the_description_is_named(run):
    sources = json.loads((run / "sources.json").read_text())
    del sources["data"]
    (run / "sources.json").write_text(json.dumps(sources))
    with pytest.raises(ValueError, match=r"sources\.json has no"):
        train(config(), run)


@pytest.fixture
def photos(tmp_path):
    """Return the spec of a data set in files."""
    (tmp_path / "images").mkdir()
    rows = []
    for i in range(16):
        image = Image.new("RGB", (16, 16), (16 * i, 0, 0))
        image.save(tmp_path / "images" / f"{i}.png")
        rows.append({"image": f"{i}.png", "caption": f"red of strength {i}"})
    (tmp_path / "a.json").write_text(json.dumps(rows))
    return {
        "kind": "annotations",
        "path": str(tmp_path / "a.json"),
        "images": str(tmp_path / "images"),
    }


@pytest.mark.parametrize("change", ["captions", "images"])
def test_other_data_under_the_same_names_is_refused(tmp_path, photos, change):
    changes, run = {"data.train": (photos,)}, tmp_path / "run"
    assert train(config(**changes), run) == 0
    assert train(config(**changes), run) == 0
    if change == "captions":
        path = tmp_path / "a.json"
        path.write_text(path.read_text().replace("strength 9", "no strength"))
        message = "has other texts and their order than when the run began"
    else:
        for path in (tmp_path / "images").iterdir():
            Image.new("RGB", (16, 16), (0, 9, 0)).save(path)
        message = "has other image file"
    before = contents(run)
    with pytest.raises(ConfigError, match=rf"the data of this run was.*{message}"):
        train(config(**changes), run)
    assert contents(run) == before


def test_a_copy_of_the_data_is_the_same_data_and_reported(tmp_path, photos, capsys):
    changes, run = {"data.train": (photos,)}, tmp_path / "run"
    train(config(**changes), run)
    for path in (tmp_path / "images").iterdir():
        os.utime(path, (0, 0))
    assert train(config(**changes), run) == 0
    assert "image file times differ" in capsys.readouterr().err


def test_a_run_with_the_former_fingerprint_continues(tmp_path, photos):
    changes, run = {"data.train": (photos,)}, tmp_path / "run"
    train(config(**changes), run)
    sources = json.loads((run / "sources.json").read_text())
    for source in sources["data"]:
        del source["content"]
    (run / "sources.json").write_text(json.dumps(sources))
    assert train(config(**changes), run) == 0


def test_frozen_weights_replaced_in_place_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, kernel = "visual_encoder/kernel", np.ones((3, 8), np.float32)
    source = ModelSource(golden_config("stage2_opt_a"), {path: kernel}, "test")
    write_folder(source, tmp_path / "weights")
    changes = {"frozen_sources.vision": str(tmp_path / "weights")}
    run = tmp_path / "run"
    for _ in range(2):
        assert train(config(**changes), run) == 0
    before = contents(run)
    save_file({path: -kernel}, tmp_path / "weights" / "model.safetensors")
    with pytest.raises(SourceError, match=rf"weights: the values of {path} are not"):
        train(config(**changes), run)
    assert contents(run) == before


def test_other_values_of_a_cast_folder_are_noticed_by_the_run():
    recorded = {"digest": "a", "shape": [1], "source": "w"}
    cast = {**recorded, "stored": "b", "stored_dtype": "bfloat16"}
    for same in (recorded, cast, cast | {"stored": "c", "stored_dtype": "float16"}):
        verify_manifest({"x": cast}, {"x": same})
        verify_manifest({"x": same}, {"x": cast})
    with pytest.raises(WeightsError, match="1 frozen arrays are not those"):
        verify_manifest({"x": cast}, {"x": cast | {"stored": "c"}})
