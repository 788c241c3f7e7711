"""The commands of docs/server.md work as they stand there; the schema is kept."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

import blip2_jax
from blip2_jax.serve.server_config import ServerConfig
from tests.support.documentation import all_blocks
from tests.support.running_server import WAIT, RunningServer

pytestmark = pytest.mark.slow
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server():
    models = {name: blip2_jax.load(name) for name in ("shapes", "shapes_stage1")}
    server = RunningServer(models, ServerConfig(max_batch=1, timeout=WAIT))
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    blip2_jax.example_image().save(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)


def blocks(language):
    """Return the blocks of the page that need a server, without their address."""
    return [
        block.text
        for block in all_blocks(language)
        if block.page == "docs/server.md" and block.needs == "server"
    ]


def test_curl(server, folder):
    answers = []
    for block in blocks("bash"):
        for command in re.split(r"(?m)^(?=curl)", block)[1:]:
            image = block.splitlines()[0]
            script = f"{image}\n{command}".replace(ADDRESS, server.url)
            done = subprocess.run(["bash", "-c", script], capture_output=True)
            answers.append(json.loads(done.stdout))
    chat, match, rank, embeddings = answers
    assert chat["choices"][0]["message"]["content"]
    assert len(match["data"]) == len(rank["data"]) == len(embeddings["data"]) == 2


def test_python(server, folder, capsys):
    pytest.importorskip("openai")
    (block,) = blocks("python")
    exec(block.replace(ADDRESS, server.url), {})
    assert "chat.completion" in capsys.readouterr().out


def test_schemathesis_finds_no_failure_of_the_server(server):
    pytest.importorskip("schemathesis")
    program = str(pathlib.Path(sys.executable).with_name("schemathesis"))
    command = [program, "run", f"{server.url}/openapi.json"]
    options = ["--checks=not_a_server_error", "--max-examples=25", "--seed=1"]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
