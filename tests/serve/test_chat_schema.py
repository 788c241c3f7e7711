"""Bodies of requests: how many errors a wrong one has, and what they say."""

import json
import re

import pytest

pytest.importorskip("fastapi")

from pydantic import ValidationError

from blip2_jax.serve.api_errors import _wrong_body
from blip2_jax.serve.chat import Completion
from blip2_jax.serve.chat_schema import (
    ChatBody,
    EmbeddingsBody,
    MatchBody,
    Message,
    RankBody,
)

MANY = 20_000


def chat(content, **fields):
    return {"messages": [{"role": "user", "content": content, **fields}]}


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (ChatBody, chat([1] * MANY)),
        (ChatBody, chat([{"type": "text", "text": "a"}] * MANY)),
        (ChatBody, {"messages": [1] * MANY}),
        (ChatBody, chat("a") | {"stop": [1] * MANY}),
        (ChatBody, chat("a") | {f"unknown{n}": 1 for n in range(MANY)}),
        (ChatBody, chat("a", **{f"unknown{n}": 1 for n in range(MANY)})),
        (EmbeddingsBody, {"input": [1] * MANY}),
        (MatchBody, {"image": "a", "texts": [1] * MANY}),
        (RankBody, {"image": "a", "candidates": [1] * MANY}),
    ],
)
def test_a_small_body_has_no_thousands_of_errors(body, wrong):
    with pytest.raises(ValidationError) as info:
        body.model_validate(wrong)
    assert info.value.error_count() <= 3 * 1024 + 2


@pytest.mark.parametrize(
    ("body", "wrong", "place", "message"),
    [
        (ChatBody, chat([{"type": "image_url", "image_url": "data:,a"}]),
         "messages.0.content.0.image_url", "an object, not a string"),
        (ChatBody, chat([{"type": "text"}]),
         "messages.0.content.0.text", "required"),
        (ChatBody, chat([{"type": "input_audio", "input_audio": {}}]),
         "messages.0.content.0", "'input_audio'.*'text', 'image_url'"),
        (ChatBody, chat([1] * 70), "messages.0.content", "at most 64 items.*not 70"),
        (ChatBody, chat(5), "messages.0.content", "valid string, not a number"),
        (ChatBody, chat(None), "messages.0.content", "valid string, not null"),
        (ChatBody, chat("a") | {"stop": ["a"] * 5}, "stop", "at most 4 items.*not 5"),
        (ChatBody, chat("a") | {"Unknown": 1}, "Unknown", "no such option"),
        (EmbeddingsBody, {"input": ["a", {"type": "image_url", "image_url": "a"}]},
         "input.1.image_url", "an object, not a string"),
        (EmbeddingsBody, {"input": [5]}, "input.0", "valid string, not a number"),
    ],
)  # fmt: skip
def test_errors_name_place_and_type(body, wrong, place, message):
    with pytest.raises(ValidationError) as info:
        body.model_validate(wrong)
    errors = [each | {"loc": ("body", *each["loc"])} for each in info.value.errors()]
    error = _wrong_body(errors)
    assert error.param == place
    assert re.search(message, str(error)), str(error)


USAGE = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
DONE = Completion("shapes", (("a circle", "stop"),), USAGE)


def test_a_message_of_this_server_is_read_again():
    message = DONE.body()["choices"][0]["message"]
    assert Message.model_validate(message).content == "a circle"


def test_the_message_that_openais_client_sends_back_is_read():
    types = pytest.importorskip("openai.types.chat")
    answer = types.ChatCompletion.model_validate(DONE.body())
    sent = answer.choices[0].message.model_dump(exclude_unset=True)
    assert Message.model_validate(sent).content == "a circle"


def test_usage_is_in_the_last_event_and_null_before():
    *events, done = DONE.events(include_usage=True)
    usages = [json.loads(event.removeprefix("data: "))["usage"] for event in events]
    assert usages == [None] * 4 + [USAGE] and "[DONE]" in done
    assert "usage" not in "".join(DONE.events(include_usage=False))
