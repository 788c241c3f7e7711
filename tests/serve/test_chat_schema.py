"""Bodies of requests: how many errors a wrong one has, and what they say."""

import pytest

pytest.importorskip("fastapi")

from pydantic import ValidationError

from blip2_jax.serve.chat_schema import ChatBody, EmbeddingsBody, MatchBody, RankBody

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
