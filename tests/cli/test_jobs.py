"""Commands that need each other: order, failures, interrupts."""

import os
import signal
import subprocess
import sys
import time

import pytest

from blip2_jax.cli.jobs import Job, available_cores, run_jobs


def say(tmp_path, name, code="", needs=()):
    """A job that writes its name behind those of the others when it begins."""
    begun = f"open({str(tmp_path / 'order')!r}, 'a').write('{name} ')"
    command = [sys.executable, "-c", f"{begun}\n{code}"]
    return Job(name, command, tmp_path / f"{name}.log", needs)


def order(tmp_path):
    return (tmp_path / "order").read_text().split()


def test_jobs_wait_for_what_they_need_and_begin_in_order(tmp_path):
    jobs = [
        say(tmp_path, "last", needs=("first", "second")),
        say(tmp_path, "second", needs=("first", "done before")),
        say(tmp_path, "first", "print('heard')"),
        say(tmp_path, "other"),
    ]
    lines = []
    assert run_jobs(jobs, cores=available_cores()[:1], report=lines.append) == []
    assert order(tmp_path) == ["first", "second", "last", "other"]
    assert lines[0] == "first done, 3 of 4 left"
    assert (tmp_path / "first.log").read_text() == "heard\n"


def test_what_jobs_say_can_be_told_behind_their_names(tmp_path):
    lines = []
    job = say(tmp_path, "one", "print('a'); print('b')")
    assert (
        run_jobs([job], cores=available_cores()[:1], report=lines.append, echo=True)
        == []
    )
    assert lines == ["one | a", "one | b", "one done, 0 of 1 left"]


def test_what_fails_takes_along_what_needs_it_and_nothing_else(tmp_path):
    jobs = [
        say(tmp_path, "bad", "import sys; sys.exit(3)"),
        say(tmp_path, "needs", needs=("bad",)),
        say(tmp_path, "needs that", needs=("needs",)),
        say(tmp_path, "good"),
    ]
    lines = []
    failed = run_jobs(jobs, cores=available_cores()[:1], report=lines.append)
    assert failed == ["bad", "needs", "needs that"]
    assert order(tmp_path) == ["bad", "good"]
    assert f"bad failed (3): see {tmp_path / 'bad.log'}" in lines


def test_a_command_that_is_not_there_fails(tmp_path):
    job = Job("odd", ["/no/such/program"], tmp_path / "log")
    assert run_jobs([job], cores=available_cores()[:1], report=lambda line: None) == [
        "odd"
    ]
    assert "/no/such/program" in (tmp_path / "log").read_text()


@pytest.mark.skipif(len(available_cores()) < 2, reason="needs two cores")
def test_each_place_has_a_job_of_its_own(tmp_path):
    wait = (
        "import os, time\n"
        "print(sorted(os.sched_getaffinity(0)), flush=True)\n"
        f"while not os.path.exists({str(tmp_path / '{}')!r} + '.log'): time.sleep(.01)"
    )
    jobs = [say(tmp_path, "a", wait.format("b")), say(tmp_path, "b", wait.format("a"))]
    assert run_jobs(jobs, cores=available_cores()[:2], report=lambda line: None) == []
    held = {(tmp_path / f"{name}.log").read_text().strip() for name in "ab"}
    assert held == {f"[{core}]" for core in available_cores()[:2]}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)]
)
def test_asked_to_end_it_ends_what_runs_politely(tmp_path, number, code):
    program = f"""
import pathlib, signal, sys
from blip2_jax.cli.jobs import Job, available_cores, run_jobs
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
