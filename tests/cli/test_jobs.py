"""Jobs: their order, failures and interrupts."""

import os
import signal
import subprocess
import sys
import time

import pytest

from blip2_jax.cli.jobs import Job, run_jobs
from blip2_jax.parallel.worker_places import available_cores


def make_job(tmp_path, name, code="", needs=()):
    """A job that appends its name to a common file when it starts."""
    begun = f"open({str(tmp_path / 'order')!r}, 'a').write('{name} ')"
    command = [sys.executable, "-c", f"{begun}\n{code}"]
    return Job(name, command, tmp_path / f"{name}.log", needs)


def order(tmp_path):
    return (tmp_path / "order").read_text().split()


def test_jobs_wait_for_their_needs_and_start_in_order(tmp_path):
    jobs = [
        make_job(tmp_path, "last", needs=("first", "second")),
        make_job(tmp_path, "second", needs=("first", "done before")),
        make_job(tmp_path, "first", "print('heard')"),
        make_job(tmp_path, "other"),
    ]
    lines = []
    assert run_jobs(jobs, cores=available_cores()[:1], report=lines.append) == []
    assert order(tmp_path) == ["first", "second", "last", "other"]
    assert lines[0] == "first done, 3 of 4 left"
    assert (tmp_path / "first.log").read_text() == "heard\n"


def test_output_of_jobs_is_echoed_after_their_names(tmp_path):
    lines = []
    job = make_job(tmp_path, "one", "print('a'); print('b')")
    assert (
        run_jobs([job], cores=available_cores()[:1], report=lines.append, echo=True)
        == []
    )
    assert lines == ["one | a", "one | b", "one done, 0 of 1 left"]


def test_only_jobs_that_need_a_failed_job_are_skipped(tmp_path):
    jobs = [
        make_job(tmp_path, "bad", "import sys; sys.exit(3)"),
        make_job(tmp_path, "needs", needs=("bad",)),
        make_job(tmp_path, "needs that", needs=("needs",)),
        make_job(tmp_path, "good"),
    ]
    lines = []
    failed = run_jobs(jobs, cores=available_cores()[:1], report=lines.append)
    assert failed == ["bad", "needs", "needs that"]
    assert order(tmp_path) == ["bad", "good"]
    assert f"bad failed (3): see {tmp_path / 'bad.log'}" in lines


def test_a_missing_program_fails(tmp_path):
    job = Job("odd", ["/no/such/program"], tmp_path / "log")
    assert run_jobs([job], cores=available_cores()[:1], report=lambda line: None) == [
        "odd"
    ]
    assert "/no/such/program" in (tmp_path / "log").read_text()


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
def test_each_core_runs_one_job(tmp_path):
    wait = (
        "import os, time\n"
        "print(sorted(os.sched_getaffinity(0)), flush=True)\n"
        f"while not os.path.exists({str(tmp_path / '{}')!r} + '.log'): time.sleep(.01)"
    )
    jobs = [
        make_job(tmp_path, "a", wait.format("b")),
        make_job(tmp_path, "b", wait.format("a")),
    ]
    assert run_jobs(jobs, cores=available_cores()[:2], report=lambda line: None) == []
    affinities = {(tmp_path / f"{name}.log").read_text().strip() for name in "ab"}
    assert affinities == {f"[{core}]" for core in available_cores()[:2]}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)]
)
def test_a_signal_terminates_the_running_job(tmp_path, number, code):
    program = f"""
import pathlib, signal, sys
from blip2_jax.cli.jobs import Job, run_jobs
from blip2_jax.parallel.worker_places import available_cores
wait = '''
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
print("begun", flush=True)
time.sleep(60)
'''
log = pathlib.Path({str(tmp_path / "log")!r})
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
jobs = [Job(name, [sys.executable, "-c", wait], log) for name in ("one", "two")]
run_jobs(jobs, cores=available_cores()[:1])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "log"
    deadline = time.monotonic() + 30
    while not (log.exists() and "begun" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=30)
    assert ("KeyboardInterrupt" in error) == (number == signal.SIGINT)
    assert process.returncode == code
    assert log.read_text() == "begun\nsaved\n"
