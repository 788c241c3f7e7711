"""The HTTP server on loopback: answers of the models, limits, queue, stopping."""

import base64
import json
import socket
import threading
import time

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

import blip2_jax
from blip2_jax.serve.server_config import ServerConfig
from tests.support.bad_requests import CHAT, EMBED, MATCH, RANK, bad_requests
from tests.support.running_server import (
    WAIT,
    RunningServer,
    data_url,
    image_part,
    user_message,
)

GREEDY = {"num_beams": 1, "max_tokens": 8}
SETTINGS = {"num_beams": 1, "max_new_tokens": 8}
CONFIG = ServerConfig(max_batch=1, timeout=WAIT, warm_tokens=0, max_queue=2)


@pytest.fixture(scope="module")
def models():
    return {name: blip2_jax.load(name) for name in ("shapes", "shapes_stage1")}


@pytest.fixture(scope="module")
def server(models):
    server = RunningServer(models, CONFIG)
    yield server
    server.close()


@pytest.fixture(scope="module")
def images():
    return [blip2_jax.example_image(number) for number in range(2)]


@pytest.fixture(scope="module")
def urls(images):
    return [data_url(image) for image in images]


def ask(server, *messages, **options):
    """Return the body of an answer."""
    body = {"model": "shapes", "messages": list(messages), **GREEDY, **options}
    response = server.client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def texts_of(answer):
    return [choice["message"]["content"] for choice in answer["choices"]]


def test_an_image_alone_is_captioned(server, models, images, urls):
    answer = ask(server, user_message(urls[0]))
    assert texts_of(answer) == models["shapes"].caption(images[0], **SETTINGS)
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 1 <= usage["completion_tokens"] <= 8
    short = ask(server, user_message(urls[0]), max_tokens=2)
    assert [c["finish_reason"] for c in short["choices"]] == ["length"]
    assert short["usage"]["completion_tokens"] == 2


def test_a_conversation_is_answered(server, models, images, urls):
    turns = [("how many shapes are there?", "two")]
    answer = ask(
        server,
        user_message(urls[0], turns[0][0]),
        {"role": "assistant", "content": turns[0][1]},
        {"role": "user", "content": "what color is the square?"},
    )
    expected = models["shapes"].answer(
        images[0], "what color is the square?", history=turns, **SETTINGS
    )
    assert texts_of(answer) == expected
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_samples_follow_the_seed(server, models, images, urls):
    options = {"temperature": 1.0, "n": 3, "seed": 7}
    answers = [texts_of(ask(server, user_message(urls[0]), **options)) for _ in "ab"]
    expected = models["shapes"].caption(
        images[0], sample=True, num_return_sequences=3, max_new_tokens=8, seed=7
    )
    assert answers == [expected[0]] * 2
    del options["seed"]  # then each request has samples of its own
    others = {tuple(texts_of(ask(server, user_message(urls[0]), **options)))
              for _ in range(4)}  # fmt: skip
    assert len(others) > 1


def test_a_stop_string_ends_the_text(server, urls):
    (whole,) = texts_of(ask(server, user_message(urls[0])))
    word = whole.split()[1]
    answer = ask(server, user_message(urls[0]), stop=["nowhere", word])
    assert texts_of(answer) == [whole[: whole.index(word)]]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_stream_has_the_same_text_in_pieces(server, urls):
    (whole,) = texts_of(ask(server, user_message(urls[0])))
    body = {
        "messages": [user_message(urls[0])],
        "stream": True,
        "stream_options": {"include_usage": True},
        **GREEDY,
    }
    with server.client.stream("POST", CHAT, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    *chunks, usage = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    pieces = [c["choices"][0]["delta"].get("content", "") for c in chunks]
    assert "".join(pieces) == whole and len(pieces) > 3
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] > 0


def test_embeddings_give_the_scores_of_match(server, models, images, urls):
    texts = ["a red circle", "a blue square"]
    scores = models["shapes_stage1"].match(images[0], texts, pairs="all")
    body = {"model": "shapes_stage1", "image": urls[0], "texts": texts}
    data = server.client.post(MATCH, json=body).json()["data"]
    np.testing.assert_allclose([row["itm"] for row in data], scores.itm[0], atol=1e-5)
    np.testing.assert_allclose([row["itc"] for row in data], scores.itc[0], atol=1e-5)
    body = {
        "model": "shapes_stage1",
        "input": [texts[0], image_part(urls[0]), texts[1]],
        "queries": True,
    }
    answer = server.client.post(EMBED, json=body).json()
    first, image, second = answer["data"]
    vectors = np.array([first["embedding"], second["embedding"]])
    itc = (np.array(image["query_embeddings"]) @ vectors.T).max(axis=0)
    np.testing.assert_allclose(itc, scores.itc[0], atol=1e-5)
    assert np.linalg.norm(image["embedding"]) == pytest.approx(1, abs=1e-5)
    assert answer["usage"]["prompt_tokens"] > 0
    body = {"model": "shapes_stage1", "input": texts[0], "encoding_format": "base64"}
    packed = server.client.post(EMBED, json=body).json()["data"][0]["embedding"]
    np.testing.assert_allclose(
        np.frombuffer(base64.b64decode(packed), "<f4"), vectors[0], atol=1e-6
    )


def test_candidates_are_ranked(server, models, images, urls):
    candidates = ["red", "blue", "green"]
    body = {"image": urls[0], "candidates": candidates, "question": "what color?"}
    data = server.client.post(RANK, json=body).json()["data"]
    (expected,) = models["shapes"].rank(images[0], candidates, questions="what color?")
    assert [(row["index"], row["text"]) for row in data] == [
        (text.candidate, text.text) for text in expected
    ]


def test_models_are_listed_and_nothing_else(server):
    data = server.client.get("/v1/models").json()["data"]
    assert [row["id"] for row in data] == ["shapes", "shapes_stage1"]
    assert server.client.get("/v1/models/shapes").json()["id"] == "shapes"
    for name in ("nothing", "..%2F..%2Fetc%2Fpasswd", "%00"):
        response = server.client.get(f"/v1/models/{name}")
        assert response.status_code == 404 and "error" in response.json()


def test_the_server_is_ready_after_its_programs_are_compiled(server):
    assert server.client.get("/health").status_code == 200
    assert server.client.get("/ready").status_code == 503
    server.service.start_warming().join(WAIT)
    assert server.client.get("/ready").json() == {"status": "ready"}


def test_metrics_count_requests_and_batches(server, urls):
    ask(server, user_message(urls[0]))
    server.client.get("/nowhere/at/all")
    text = server.client.get("/metrics").text
    assert 'requests_total{path="/v1/chat/completions",status="200"}' in text
    assert 'requests_total{path="",status="404"}' in text
    assert "blip2_jax_waiting 0.0" in text
    assert 'blip2_jax_batch_size_count{kind="CaptionRequest"}' in text


def test_each_of_many_bad_requests_is_refused_clearly(server, urls):
    requests = bad_requests(urls[0])
    assert len(requests) >= 200
    headers = {"Content-Type": "application/json"}
    for path, body in requests:
        response = server.client.post(path, content=body, headers=headers)
        told = (path, body[:300], response.text)
        assert 400 <= response.status_code < 500, told
        error = response.json()["error"]
        assert error["message"] and error["type"] == "invalid_request_error", told
        assert "Traceback" not in response.text and "root:" not in response.text, told
    for path, method in ((CHAT, "GET"), (CHAT, "DELETE"), ("/", "GET"), ("/x", "POST")):
        response = server.client.request(method, path)
        assert response.status_code in (404, 405) and "error" in response.json()
    response = server.client.post(CHAT, data={"messages": "form"})
    assert response.status_code == 400 and "error" in response.json()


def wait_for(condition):
    """Wait until something becomes true in another thread."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_requests_beyond_the_queue_are_refused_and_no_other_is_lost(server, urls):
    engine, answers = server.service.engine("shapes"), []
    threads = [
        threading.Thread(
            target=lambda: answers.append(ask(server, user_message(urls[0])))
        )
        for _ in range(CONFIG.max_queue)
    ]
    with server.busy():
        for thread in threads:
            thread.start()
        wait_for(lambda: engine.waiting == CONFIG.max_queue)
        body = {"messages": [user_message(urls[0])], **GREEDY}
        response = server.client.post(CHAT, json=body)
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "queue_full"
    for thread in threads:
        thread.join(WAIT)
    assert len(answers) == CONFIG.max_queue
    assert ask(server, user_message(urls[0]))["choices"]


def test_a_client_that_leaves_cancels_its_request(server, urls):
    body = json.dumps({"messages": [user_message(urls[0])], **GREEDY}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with server.busy():
        with socket.create_connection((host, int(port))) as client:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
            length = f"\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + length.encode() + body)
            engine = server.service.engine("")
            wait_for(lambda: engine.waiting == 1)
        wait_for(lambda: server.gate.in_flight == 0)
        wait_for(lambda: engine._queue[0].future.cancelled())
    wait_for(lambda: engine.waiting == 0)
    assert 'status="499"' in server.client.get("/metrics").text


@pytest.fixture
def strict_server(models):
    """A server with a key and low limits of time and size."""
    config = ServerConfig(
        api_key="secret", timeout=0.5, upload_timeout=0.3, max_body=100_000
    )
    server = RunningServer(models, config)
    yield server
    server.close()


def test_key_time_and_size_are_limited(strict_server, urls):
    server, body = strict_server, {"messages": [user_message(urls[0])], **GREEDY}
    for header in ("", "Bearer wrong", "Basic secret", "Bearer secret2", "Bearer \xff"):
        headers = {"Authorization": header.encode("latin-1")}
        response = server.client.post(CHAT, json=body, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert server.client.get("/metrics").status_code == 401
    assert server.client.get("/health").status_code == 200
    server.client.headers["Authorization"] = "Bearer secret"
    assert server.client.get("/v1/models").status_code == 200
    with server.busy():
        response = server.client.post(CHAT, json=body)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
    long = {"messages": [user_message(urls[0], "x" * 200_000)]}
    assert server.client.post(CHAT, json=long).status_code == 413
    chunks = (b"x" * 50_000 for _ in range(4))  # without a length in the header
    assert server.client.post(CHAT, content=chunks).status_code == 413

    def slow():
        yield b"{"
        time.sleep(1.0)
        yield b"}"

    response = server.client.post(CHAT, content=slow())
    assert response.status_code == 408
    assert response.json()["error"]["code"] == "slow_upload"


def test_a_server_that_stops_finishes_what_it_accepted(models, urls):
    server, answers = RunningServer(models, CONFIG), []
    thread = threading.Thread(
        target=lambda: answers.append(ask(server, user_message(urls[0])))
    )
    with server.busy():
        thread.start()
        wait_for(lambda: server.service.engine("").waiting == 1)
        server.stop()
        body = {"messages": [user_message(urls[0])], **GREEDY}
        response = server.client.post(CHAT, json=body)
        assert response.status_code == 503 and "retry-after" in response.headers
        assert server.client.get("/ready").json() == {"status": "stopping"}
        assert server.client.get("/health").status_code == 200
    thread.join(WAIT)
    server.wait()
    assert texts_of(answers[0])[0]
    assert server.service.close()


def test_the_client_of_openai(server, models, images, urls):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    ask = lambda **options: client.chat.completions.create(
        model="shapes",
        messages=[user_message(urls[0])],
        max_tokens=8,
        extra_body={"num_beams": 1},
        **options,
    )
    (expected,) = models["shapes"].caption(images[0], **SETTINGS)
    assert ask().choices[0].message.content == expected
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(stream=True)]
    assert "".join(pieces) == expected
    vectors = client.embeddings.create(model="shapes_stage1", input=["a red circle"])
    assert np.linalg.norm(vectors.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert [model.id for model in client.models.list()] == ["shapes", "shapes_stage1"]
    with pytest.raises(openai.BadRequestError, match="frequency_penalty"):
        ask(frequency_penalty=1.0)
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.embeddings.create(model="other", input="a")
