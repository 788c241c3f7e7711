"""How the HTTP server ends: what runs is finished, or cut off and told so."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

import httpx

import blip2_jax
from blip2_jax.serve.server_config import ServerConfig
from blip2_jax.serve.service import Service
from tests.support.bad_requests import MATCH
from tests.support.running_server import WAIT, RunningServer, data_url

CONFIG = ServerConfig(timeout=WAIT, warm_tokens=-1)
SERVE = """
import sys, blip2_jax
from blip2_jax.serve.server import serve
from blip2_jax.serve.server_config import ServerConfig
models = {"shapes_stage1": blip2_jax.load("shapes_stage1")}
serve(models, ServerConfig(warm_tokens=-1), "127.0.0.1", int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def models():
    return {"shapes_stage1": blip2_jax.load("shapes_stage1")}


def wait_for(condition):
    """Wait until something becomes true in another thread."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def match():
    return {"image": data_url(blip2_jax.example_image(0)), "texts": ["a red circle"]}


def test_a_request_that_is_cut_off_is_told(models):
    server, answers = RunningServer(models, CONFIG), []
    thread = threading.Thread(
        target=lambda: answers.append(server.client.post(MATCH, json=match()))
    )
    with server.busy():
        thread.start()
        wait_for(lambda: server.service.engine("").waiting == 1)
        server.stop()
        server.stop()
        thread.join(WAIT)
        server.wait()
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "stopping"
    assert server.service.close()


def test_a_service_that_reads_images_is_not_idle(models):
    service, started, released = Service(models, CONFIG), threading.Event(), []

    def read():
        started.set()
        wait_for(lambda: released)

    thread = threading.Thread(target=lambda: asyncio.run(service.decode(read)))
    thread.start()
    assert started.wait(WAIT)
    is_idle = service.close(timeout=0.1)
    released.append(True)
    assert not is_idle
    assert service.close()
    thread.join(WAIT)


def test_two_signals_end_a_process_that_compiles_without_an_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )

    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT)

    def get(path):
        assert process.poll() is None
        try:
            return client.get(path).text
        except httpx.TransportError:  # it does not listen yet
            return ""

    statuses = [200]

    def post():
        for words in (1, 10, 20, 30):  # each has a program of its own
            if statuses[-1] == 200:
                body = match() | {"texts": ["a " * words]}
                statuses.append(client.post(MATCH, json=body).status_code)

    thread = threading.Thread(target=post)
    try:
        wait_for(lambda: get("/health"))
        thread.start()
        wait_for(lambda: "blip2_jax_running 1.0" in get("/metrics"))
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in get("/ready"))
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=WAIT)[1]
    finally:
        process.kill()
    thread.join(WAIT)
    assert process.returncode == 0, errors
    assert errors.endswith("stopped\n") and "Traceback" not in errors
    assert statuses[-1] == 503
