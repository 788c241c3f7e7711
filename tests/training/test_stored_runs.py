"""Runs whose directory is on an object store: killed, cut off, locked, set aside."""

import json
import os
import pathlib
import shutil
import signal
import time

import pytest

from benchmarks import soak
from blip2_jax.parallel import store_retries
from blip2_jax.parallel.paths import as_path
from blip2_jax.parallel.store_retries import StoreError
from blip2_jax.training import stored_run, tasks
from blip2_jax.training.checkpoints import Checkpoints, is_run
from blip2_jax.training.loop import train
from blip2_jax.training.metrics_log import read_metrics
from blip2_jax.training.run_lock import RunLock, RunLocked
from blip2_jax.training.stored_checkpoints import whole_steps
from blip2_jax.training.stored_run import StoredRun
from blip2_jax.training.train_config import ConfigError
from tests.support import toy_task
from tests.support.generated_data import tars_spec
from tests.support.processes import SUPPORT

TOY = SUPPORT / "toy_task.py"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Use a cache directory of the test; return it."""
    monkeypatch.setitem(tasks.TASKS, "stage1", toy_task.make_toy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def toy_config(**changes):
    config = toy_task.get_config().unlock()
    config.update_from_flattened_dict(changes)
    return config.lock()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Train 20 steps without a store; return the directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, "stage1", toy_task.make_toy)
        directory = tmp_path_factory.mktemp("whole") / "run"
        train(toy_config(), directory)
    return directory


def assert_same(run, whole):
    assert list(soak.losses(run)) == list(range(1, 21))
    assert not soak.differences(run, whole, 20)


def test_a_run_on_a_store_leaves_what_a_local_one_does(s3, whole):
    run = as_path(s3.root) / "runs" / "toy"
    assert train(toy_config(), str(run)) == 0
    assert_same(run, whole)
    assert is_run(run)
    names = {name.removeprefix("runs/toy/") for name in s3.names("runs/toy")}
    for name in ("config.json", "sources.json", "last_checkpoint.json", "session.json"):
        assert name in names
    assert not any("lock" in name or "tmp" in name for name in names)
    assert {
        name.split("/")[1] for name in names if name.startswith("checkpoints/")
    } == {
        "15",
        "20",
    }
    assert any(name.startswith("tensorboard/") for name in names)


def test_a_run_on_gcs_continues_elsewhere(gcs, whole, cache):
    run = as_path(gcs) / "run"
    assert train(toy_config(), run) == 0
    (run / "checkpoints" / "20" / "uploaded.json").unlink()
    shutil.rmtree(cache)
    assert train(toy_config(), run) == 0
    assert_same(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("same_host", [True, False])
def test_a_killed_run_continues_bit_for_bit(tmp_path, s3, monkeypatch, same_host):
    """Data and run are on the store; another host has another cache."""
    (tmp_path / "data").mkdir()
    tars_spec(tmp_path / "data")
    remote = s3.put(tmp_path / "data", "data")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = as_path(s3.root) / "run"
    common = ("steps=40", "checkpoint.every=5")
    local = ["--data", f"{tmp_path}/data/*.tar"]
    soak.run(TOY, TOY, whole, *common, flags=local)
    stored = ["--data", f"{remote}/*.tar", f"--workdir={run}"]
    process = soak.start(TOY, TOY, killed, *common, "data.workers=1", flags=stored)
    deadline = time.monotonic() + 300
    while not (run / "checkpoints" / "10" / "uploaded.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    if not same_host:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    soak.run(TOY, TOY, killed, *common, "data.workers=0", flags=stored)
    assert "continued from checkpoint" in soak.log_of(killed).read_text()
    assert list(soak.losses(run)) == list(range(1, 41))
    assert not soak.differences(run, whole, 40)


@pytest.mark.parametrize("fault", ["no marker", "a file is missing", "a file is short"])
def test_half_of_a_checkpoint_is_not_taken_for_a_whole_one(
    s3, whole, cache, caplog, fault
):
    run = as_path(s3.root) / "run"
    train(toy_config(), run)
    newest = run / "checkpoints" / "20"
    if fault == "no marker":
        (newest / "uploaded.json").unlink()
    else:
        sizes = json.loads((newest / "uploaded.json").read_text())["files"]
        largest = newest / max(sizes, key=sizes.get)
        if fault == "a file is missing":
            largest.unlink()
        else:
            largest.write_bytes(largest.read_bytes()[:-1])
    shutil.rmtree(cache)
    assert Checkpoints(run, read_only=True).steps() == [15]
    assert "checkpoint 20" in caplog.text
    train(toy_config(), run)
    assert_same(run, whole)


def test_an_outage_ends_the_run_and_the_same_command_continues_it(
    flaky_s3, monkeypatch, whole
):
    bucket, proxy = flaky_s3
    run = as_path(bucket.root) / "run"
    monkeypatch.setenv(store_retries.PATIENCE, "1")
    slow_down(monkeypatch)
    proxy.outage_after = "checkpoints/5/uploaded.json"
    with pytest.raises(StoreError) as error:
        train(toy_config(**{"checkpoint.keep": 10}), run)
    message = str(error.value)
    assert str(run) in message and "the limit is 1 s" in message
    assert "The last whole checkpoint" in message and " is 5;" in message
    proxy.outage, proxy.outage_after = False, ""
    assert Checkpoints(run, read_only=True).steps() == [5]
    (run / "lock.owner").unlink(missing_ok=True)  # of this process, which lives
    assert train(toy_config(**{"checkpoint.keep": 10}), run) == 0
    assert_same(run, whole)


def slow_down(monkeypatch):
    """Let a step take 50 ms, so that uploads happen in between."""
    from blip2_jax.training.loop import Loop

    launch = Loop.launch_step

    def launch_slowly(self, step):
        time.sleep(0.05)
        return launch(self, step)

    monkeypatch.setattr(Loop, "launch_step", launch_slowly)


def test_what_an_outage_kept_here_is_uploaded_later(flaky_s3, monkeypatch, whole):
    """The newer checkpoint of the staging directory is used if nobody else has run."""
    bucket, proxy = flaky_s3
    run = as_path(bucket.root) / "run"
    monkeypatch.setenv(store_retries.PATIENCE, "0.2")
    proxy.outage_after = "checkpoints/15/uploaded.json"
    with pytest.raises(StoreError):
        train(toy_config(), run)
    proxy.outage, proxy.outage_after = False, ""
    staged = stored_run.staging_directory(run)
    assert (staged / "checkpoints" / "20").is_dir()
    (run / "lock.owner").unlink(missing_ok=True)  # of this process, which lives
    before = len(proxy.requests)
    assert train(toy_config(), run) == 0
    read = [path for method, path, _ in proxy.requests[before:] if method == "GET"]
    assert not any("/checkpoints/15/trainable" in path for path in read)
    assert_same(run, whole)


def test_passing_failures_are_counted_in_the_log(flaky_s3, whole):
    bucket, proxy = flaky_s3
    run = as_path(bucket.root) / "run"
    proxy.fail_every = 7
    assert train(toy_config(), run) == 0
    proxy.fail_every = 0
    assert_same(run, whole)
    assert proxy.failures
    counts = [line.get("store_retries", 0) for line in read_metrics(run)]
    assert counts == sorted(counts) and counts[-1] > 0


def test_one_owner_at_a_time(s3):
    run = as_path(s3.root) / "run"
    with RunLock(run), pytest.raises(RunLocked, match=f"process {os.getpid()}"):
        RunLock(run).acquire()
    with RunLock(run):  # it was released
        pass


def test_a_run_whose_lock_was_taken_uploads_nothing_more(s3):
    run = as_path(s3.root) / "run"
    with RunLock(run) as lock:
        stored = StoredRun(run, lock=lock)
        stored.open()
        write_files(stored.directory, config="{}")
        stored.begin()
        (run / "lock.owner").write_text('{"host": "elsewhere"}')
        write_files(stored.directory, config='{"seed": 1}')
        with pytest.raises(RunLocked, match="no longer this process's"):
            stored.close(failed=False)
    assert (run / "config.json").read_text() == "{}"
    assert (run / "lock.owner").read_text() == '{"host": "elsewhere"}'


def test_restart_sets_the_former_run_aside(s3, whole):
    run = as_path(s3.root) / "run"
    train(toy_config(seed=3), run)
    former = soak.losses(run)
    assert train(toy_config(), run, restart=True) == 0
    assert_same(run, whole)
    assert soak.losses(run / "earlier" / "1") == former
    assert Checkpoints(run / "earlier" / "1", read_only=True).steps() == [15, 20]


def write_files(directory, **texts):
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (directory / f"{name}.json").write_text(text)


def test_restart_keeps_a_checkpoint_that_only_the_staging_directory_has(s3):
    run = as_path(s3.root) / "run"
    staged = stored_run.staging_directory(run)
    for directory in (run, staged):
        write_files(directory, session='{"session": "a"}', config="{}")
    newer = staged / "checkpoints" / "20" / "arrays"
    newer.parent.mkdir(parents=True)
    newer.write_text("the only copy")
    stored = StoredRun(run, restart=True)
    stored.open()
    assert (run / "checkpoints" / "20" / "arrays").read_text() == "the only copy"
    assert not newer.exists()  # the new run finds nothing of the former one
    write_files(staged, config='{"seed": 1}')
    stored.begin()
    stored.close(failed=False)
    former = run / "earlier" / "1"
    assert whole_steps(former, former.files()) == [20]
    assert not whole_steps(run, run.files())


def test_a_copy_that_was_stopped_half_way_is_made_again(s3):
    run = as_path(s3.root) / "run"
    staged = stored_run.staging_directory(run)
    write_files(run, session='{"session": "a"}', config="{}", sources="[]")
    write_files(staged, session='{"session": "a"}')
    StoredRun(run).open()
    assert (staged / "config.json").exists() and (staged / "sources.json").exists()


def test_a_run_that_cannot_start_leaves_nothing(s3):
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        train(toy_config(**{"model.attention": "cudnn"}), f"{s3.root}/run")
    assert s3.names() == []


def test_a_run_is_not_kept_on_the_hub():
    with pytest.raises(ConfigError, match="cannot be kept on the hub"):
        train(toy_config(), "hf://org/name")


def test_the_staging_directory_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv(stored_run.STAGING, str(tmp_path / "disk"))
    directory = stored_run.staging_directory(as_path("s3://bucket/run"))
    assert directory.parent == pathlib.Path(tmp_path / "disk")
