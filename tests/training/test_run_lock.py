"""One owner of a run directory: locks of living, ended and killed processes."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from blip2_jax.parallel import store_retries
from blip2_jax.parallel.files import create_text
from blip2_jax.parallel.paths import as_path
from blip2_jax.training import run_lock
from blip2_jax.training.run_lock import RunLock, RunLocked

HOLD = """
import pathlib, sys, time
from blip2_jax.training import run_lock
if sys.argv[2] == "written":
    run_lock.fcntl = None  # as where file systems have no locks
with run_lock.RunLock(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""
KINDS = pytest.mark.parametrize("kind", ["flock", "written"])


def hold(directory, kind) -> subprocess.Popen:
    """Start a process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory), kind],
        stdout=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    return process


def without_file_locks(monkeypatch):
    """Make `flock` fail as on file systems without locks."""

    def fail(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(run_lock.fcntl, "flock", fail)
    monkeypatch.setattr(run_lock, "SETTLE_S", 0.0)


@KINDS
def test_a_second_process_is_told_who_holds_the_lock(tmp_path, monkeypatch, kind):
    if kind == "written":
        without_file_locks(monkeypatch)
    process = hold(tmp_path, kind)
    try:
        owner = f"process {process.pid} on host {socket.gethostname()}"
        with pytest.raises(RunLocked, match=owner), RunLock(tmp_path):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with RunLock(tmp_path):  # a killed process leaves no lock
        pass


@KINDS
def test_a_lock_is_released_also_after_an_error(tmp_path, monkeypatch, kind):
    if kind == "written":
        without_file_locks(monkeypatch)
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError
    with RunLock(tmp_path), pytest.raises(RunLocked), RunLock(tmp_path):
        pass


def test_a_directory_is_locked_when_it_has_been_created(tmp_path):
    directory = tmp_path / "new"
    with RunLock(directory) as first, RunLock(directory) as second:
        assert not directory.exists()
        directory.mkdir()
        first.acquire()
        first.acquire()  # it is held
        with pytest.raises(RunLocked):
            second.acquire()


def test_a_written_lock_of_another_host_holds_while_it_is_fresh(tmp_path, monkeypatch):
    without_file_locks(monkeypatch)
    path = tmp_path / run_lock.WRITTEN
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "then"}))
    with pytest.raises(RunLocked, match=r"elsewhere.*delete"), RunLock(tmp_path):
        pass
    old = time.time() - 2 * run_lock.STALE_AFTER_S
    os.utime(path, (old, old))
    with RunLock(tmp_path):
        pass
    assert not path.exists()


def test_a_written_lock_is_stale_when_its_owner_said(tmp_path, monkeypatch):
    without_file_locks(monkeypatch)
    path = tmp_path / run_lock.WRITTEN
    path.write_text(json.dumps({"host": "elsewhere", "stale_after_s": 720}))
    os.utime(path, (time.time() - 700,) * 2)
    with pytest.raises(RunLocked), RunLock(tmp_path):
        pass
    os.utime(path, (time.time() - 740,) * 2)
    with RunLock(tmp_path):
        pass


def test_a_lock_on_a_store_outlives_the_patience_of_its_owner(monkeypatch):
    path = as_path("s3://bucket/run/lock.owner")
    for patience in ("600", "6000"):
        monkeypatch.setenv(store_retries.PATIENCE, patience)
        assert run_lock._stale_after_s(path) > float(patience) + 60
    monkeypatch.setenv(store_retries.PATIENCE, "1")
    assert run_lock._stale_after_s(path) == run_lock.STALE_AFTER_S


THEIRS = json.dumps({"host": "elsewhere", "pid": 1, "since": "then", "token": "t"})


@pytest.mark.parametrize("theirs", [THEIRS, None], ids=["taken", "deleted"])
def test_an_owner_that_has_lost_its_lock_notices_and_lets_it_be(
    tmp_path, monkeypatch, theirs
):
    without_file_locks(monkeypatch)
    monkeypatch.setattr(run_lock, "TOUCH_EVERY_S", 0.01)
    path = tmp_path / run_lock.WRITTEN
    with RunLock(tmp_path) as lock:
        lock.check(look=True)
        path.unlink()
        if theirs:
            path.write_text(theirs)
        deadline = time.monotonic() + 10
        with pytest.raises(RunLocked, match="no longer this process's"):
            while time.monotonic() < deadline:
                lock.check()
    assert (path.read_text() if path.exists() else None) == theirs


def test_of_two_that_replace_a_stale_lock_the_slower_one_has_it(tmp_path, monkeypatch):
    without_file_locks(monkeypatch)
    path = tmp_path / run_lock.WRITTEN
    path.write_text("{}")
    os.utime(path, (0, 0))

    def create_and_be_replaced(path, text):
        create_text(path, text)
        path.unlink()
        create_text(path, THEIRS)

    monkeypatch.setattr(run_lock, "create_text", create_and_be_replaced)
    with pytest.raises(RunLocked, match="elsewhere"), RunLock(tmp_path):
        pass
    assert path.read_text() == THEIRS


def test_a_written_lock_is_kept_fresh(tmp_path, monkeypatch):
    without_file_locks(monkeypatch)
    monkeypatch.setattr(run_lock, "TOUCH_EVERY_S", 0.01)
    path = tmp_path / run_lock.WRITTEN
    with RunLock(tmp_path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_another_error_of_locking_is_not_taken_for_a_missing_lock(
    tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(run_lock.fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output"), RunLock(tmp_path):
        pass
