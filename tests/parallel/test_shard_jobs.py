"""Jobs over shards: what is finished is not done again, what is not is done whole."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from blip2_jax.parallel import shard_jobs, worker_places
from tests.support.processes import ROOT
from tests.support.shard_squares import NeverOpens, Squares


def contents(path):
    return {file.name: file.read_text() for file in sorted(path.glob("*.txt"))}


def squares(*shards):
    return {f"{shard:05d}.txt": str(shard**2) for shard in shards}


def unfinished_files(path):
    return [file.name for file in path.rglob("*") if file.name.startswith(".")]


def test_a_failed_shard_is_reported_and_tried_again_others_are_finished(tmp_path):
    job = Squares(tmp_path / "out", fail_at=2)
    with pytest.raises(shard_jobs.ShardsFailed, match=r"1 shards failed.*no square"):
        shard_jobs.run_shards(job)
    log = (job.output / "00002.txt.error.txt").read_text()
    assert "Traceback" in log
    job = dataclasses.replace(job, fail_at=-1)
    reports = shard_jobs.run_shards(job)
    assert job.attempts == [2]
    assert reports == [{"shard": shard} for shard in range(5)]
    assert contents(job.output) == squares(*range(5))
    assert not unfinished_files(job.output)


def test_many_failures_in_a_row_end_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_jobs, "MAX_FAILURES_IN_A_ROW", 2)
    monkeypatch.setattr(Squares, "write_shard", lambda *_: 1 / 0)
    with pytest.raises(shard_jobs.ShardsFailed, match="3 were not tried"):
        shard_jobs.run_shards(Squares(tmp_path / "out"))


def test_processes_and_parts_write_the_same_files(tmp_path):
    alone = Squares(tmp_path / "alone")
    shard_jobs.run_shards(alone)
    parts = Squares(tmp_path / "parts")
    assert len(shard_jobs.run_shards(parts, part=(1, 2))) == 2
    shard_jobs.run_shards(parts, processes=2, part=(0, 2))
    assert contents(parts.output) == contents(alone.output)


def test_a_killed_worker_is_replaced_and_a_deadly_shard_reported(tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    job = Squares(tmp_path / "out", die_at=1, deaths=2, log=log, fail_at=3)
    with pytest.raises(shard_jobs.ShardsFailed, match=r"1 shards .*00003\.txt"):
        shard_jobs.run_shards(job, processes=2)
    assert contents(job.output).keys() - {"00003.txt.error.txt"} == {
        f"{shard:05d}.txt" for shard in (0, 1, 2, 4)
    }
    attempts = [int(file.name.split(".")[0]) for file in log.iterdir()]
    assert sorted(attempts) == [0, 1, 1, 1, 2, 3, 4]
    assert not unfinished_files(job.output)
    deadly = Squares(tmp_path / "deadly", count=2, die_at=1, deaths=9, log=log)
    with pytest.raises(shard_jobs.ShardsFailed, match=r"died 3 times \(SIGKILL"):
        shard_jobs.run_shards(deadly, processes=2)
    assert contents(deadly.output) == squares(0)
    assert not unfinished_files(deadly.output)


def test_a_job_that_cannot_be_opened_ends_at_once(tmp_path):
    for processes in (1, 2):
        with pytest.raises(ValueError, match="no inputs"):
            shard_jobs.run_shards(NeverOpens(tmp_path / "out"), processes=processes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_leaves_only_finished_files(tmp_path, number, processes):
    if (processes, number) == (1, signal.SIGKILL):
        pytest.skip("nobody is left to delete the file")
    log = tmp_path / "log"
    log.mkdir()
    program = f"""
import pathlib, signal
from blip2_jax.parallel.shard_jobs import run_shards
from tests.support.processes import ROOT
from tests.support.shard_squares import Squares
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    folder = pathlib.Path({str(tmp_path)!r})
    job = Squares(folder / "out", log=folder / "log", seconds=60)
    run_shards(job, processes={processes})
"""
    script = tmp_path / "script.py"
    script.write_text(program)
    process = subprocess.Popen(
        [sys.executable, script],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    wait_for(lambda: len(list(log.iterdir())) == processes)
    process.send_signal(number)
    assert process.wait(30) != 0
    wait_for(lambda: not unfinished_files(tmp_path / "out"))
    assert contents(tmp_path / "out") == {}


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_damaged_report_or_a_lost_file_is_made_again(tmp_path):
    job = Squares(tmp_path / "out")
    shard_jobs.run_shards(job)
    (job.output / "00001.txt.report.json").write_text("{")
    (job.output / "00003.txt").unlink()
    shard_jobs.run_shards(job)
    assert job.attempts == [1, 3]


def test_other_settings_are_refused(tmp_path):
    job = Squares(tmp_path / "out")
    shard_jobs.run_shards(job)
    with pytest.raises(shard_jobs.OtherSettings, match="power is 3, was 2"):
        shard_jobs.run_shards(dataclasses.replace(job, power=3))


def test_each_worker_sees_one_device_or_its_cores(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.setattr(worker_places, "available_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(worker_places, "local_devices", lambda: ("gpu", 2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    places = worker_places.worker_places(None, uses_model=True)
    devices = [place.environment["CUDA_VISIBLE_DEVICES"] for place in places]
    assert devices == ["4", "6"]
    cache = places[0].environment["JAX_COMPILATION_CACHE_DIR"]
    assert cache == jax.config.jax_compilation_cache_dir
    place = worker_places.worker_places(4, uses_model=True)[3]
    assert place.environment["CUDA_VISIBLE_DEVICES"] == "6"
    assert place.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.375"
    monkeypatch.setattr(worker_places, "local_devices", lambda: ("tpu", 4))
    places = worker_places.worker_places(None, uses_model=True)
    assert [place.environment["TPU_VISIBLE_CHIPS"] for place in places] == [*"0123"]
    monkeypatch.setattr(worker_places, "local_devices", lambda: ("cpu", 1))
    assert len(worker_places.worker_places(None, uses_model=True)) == 1
    places = worker_places.worker_places(2, uses_model=True)
    assert [place.cores for place in places] == [(0, 2), (1, 3)]
    assert len(worker_places.worker_places(None, uses_model=False)) == 4


def test_without_ray_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"blip2_jax\[ray\]"):
        shard_jobs.run_shards(Squares(tmp_path / "out"), runner="ray")
