"""`blip2-jax serve`: its options, and the process from start to signal."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import pytest

import blip2_jax
from blip2_jax.cli import main
from blip2_jax.cli.serve import LIMITS, make_parser, model_name, server_config
from blip2_jax.serve.server_config import ServerConfig

ROOT = pathlib.Path(__file__).parents[2]


def test_options_are_the_settings_of_the_server(monkeypatch):
    monkeypatch.delenv("BLIP2_JAX_API_KEY", raising=False)
    arguments = make_parser().parse_args(["--model", "shapes"])
    assert server_config(arguments) == ServerConfig()
    words = [f"--{name}=7" for name in LIMITS]
    arguments = make_parser().parse_args(["--model", "shapes", *words, "--allow_urls"])
    monkeypatch.setenv("BLIP2_JAX_API_KEY", "secret")
    expected = ServerConfig(
        api_key="secret", allow_urls=True, **dict.fromkeys(LIMITS, 7)
    )
    assert server_config(arguments) == expected


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--port=99999", "--port 99999: expected 0 to 65535"),
        ("--max_queue=0", "--max_queue=0: expected a number above 0"),
        ("--timeout=nan", "--timeout=nan: expected a number above 0"),
        ("--max_batches=3", "did you mean '--max_batch'"),
    ],
)
def test_wrong_options_are_one_sentence(option, message, capsys):
    assert main.main(["serve", "--model", "shapes", option]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "blip2_jax.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main.main(["serve", "--model", "shapes"]) == 1
    error = capsys.readouterr().err
    assert "pip install 'blip2_jax[serve]'" in error and error.count("\n") == 1


def test_models_are_named_by_the_end_of_their_paths():
    names = ["shapes", "runs/stage2/", "Salesforce/blip2-opt-2.7b", "s3://b/model"]
    expected = ["shapes", "stage2", "blip2-opt-2.7b", "model"]
    assert [model_name(name) for name in names] == expected


@contextlib.contextmanager
def serving(*options):
    """Start the command; yields the process and the address of its server."""
    command = [sys.executable, "-m", "blip2_jax.cli.main", "serve", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        for line in process.stderr:
            if address := re.search(r"http://\S+", line):
                break
        else:
            raise AssertionError(f"the server ended with {process.wait()}")
        yield process, address[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_kill_restart_and_stop():
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("uvicorn")
    from tests.support.bad_requests import CHAT
    from tests.support.running_server import data_url, user_message

    url = data_url(blip2_jax.example_image())
    body = {"messages": [user_message(url)], "num_beams": 1, "max_tokens": 8}
    options = ["--model=shapes", "--warm_tokens=0", "--max_batch=1"]
    ask = lambda address: httpx.post(f"{address}{CHAT}", json=body, timeout=600)
    with serving(*options, "--port=0") as (process, address):
        first = ask(address)
        process.kill()  # and the port is free for the next one
    port = address.rpartition(":")[2]
    with serving(*options, f"--port={port}") as (process, address):
        answers = []
        thread = threading.Thread(target=lambda: answers.append(ask(address)))
        thread.start()
        metrics = ""
        while "in_flight 1" not in metrics:
            metrics = httpx.get(f"{address}/metrics").text
        process.send_signal(signal.SIGTERM)
        thread.join(600)
        assert process.wait(600) == 0
        assert "stopped" in process.stderr.read()
    assert first.status_code == answers[0].status_code == 200
    same = [json.loads(each.content)["choices"] for each in (first, answers[0])]
    assert same[0] == same[1]
