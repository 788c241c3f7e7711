"""From a conversation in OpenAI's form to a request of the engine, and back."""

from __future__ import annotations

import dataclasses
import json
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from blip2_jax.generation.decoding_config import ANSWER_DEFAULTS, CAPTION_DEFAULTS
from blip2_jax.inference.model import Blip2
from blip2_jax.serve.api_errors import ApiError
from blip2_jax.serve.chat_schema import ChatBody, Message, TextPart
from blip2_jax.serve.requests import AnswerRequest, CaptionRequest, Pixels
from blip2_jax.serve.server_config import ServerConfig

# Options of OpenAI that the models do not have, with the values that ask for nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
}
_EXTENSIONS = (
    "num_beams", "top_k", "min_new_tokens", "length_penalty", "repetition_penalty",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What the messages of a body say.

    Attributes:
      image_urls: all images, in order.
      turns: earlier questions and answers.
      text: the last question; "" asks for a caption.
    """

    image_urls: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]
    text: str


def read_conversation(
    messages: Sequence[Message], config: ServerConfig
) -> Conversation:
    """Read messages: users and assistant in turns, a user first and last.

    All images precede all texts, as the models read them. An earlier message without
    text asked for a caption and is left out, with its answer.

    Raises:
      ApiError: the messages have another order, or there are too many images or texts.
    """
    urls: list[str] = []
    texts: list[str] = []
    for index, message in enumerate(messages):
        expected = "assistant" if index % 2 else "user"
        if message.role not in ("user", "assistant"):
            raise _wrong(
                f"messages.{index}.role",
                f"the model has no {message.role} messages, only user and assistant",
            )
        if message.role != expected:
            raise _wrong(f"messages.{index}.role", f"expected {expected}: turns differ")
        text, images = _read_content(message)
        if images and message.role == "assistant":
            raise _wrong(f"messages.{index}.content", "the assistant sends no images")
        urls += images
        texts.append(text)
    if len(messages) % 2 == 0:
        raise _wrong("messages", "the last message is the user's")
    if not 1 <= len(urls) <= config.max_images:
        raise _wrong(
            "messages",
            f"{len(urls)} images: expected 1 to {config.max_images}, as parts of the "
            'form {"type": "image_url", "image_url": {"url": "data:image/..."}}',
        )
    check_length("messages", texts, config)
    turns = zip(texts[:-1:2], texts[1::2], strict=True)
    return Conversation(
        tuple(urls), tuple(turn for turn in turns if turn[0]), texts[-1]
    )


def check_length(param: str, texts: Sequence[str], config: ServerConfig) -> None:
    """Check that texts together are not longer than a server reads.

    Raises:
      ApiError: they are.
    """
    total = sum(map(len, texts))
    if total > config.max_prompt:
        raise _wrong(
            param, f"{total} characters; the limit is {config.max_prompt}", "too_long"
        )


def _read_content(message: Message) -> tuple[str, list[str]]:
    """Return the text and the image URLs of a message."""
    if isinstance(message.content, str):
        return message.content.strip(), []
    texts, urls = [], []
    for part in message.content:
        if isinstance(part, TextPart):
            texts.append(part.text.strip())
        else:
            urls.append(part.image_url.url)
    return " ".join(text for text in texts if text), urls


def decoding_settings(body: ChatBody, config: ServerConfig) -> dict[str, Any]:
    """Return the fields of `DecodingConfig` that a body changes.

    A temperature above 0, or top_p below 1, samples. Otherwise the most likely text is
    searched, with as many beams as the model's methods use.

    Raises:
      ApiError: an option is not supported, or a value is out of range.
    """
    for name, neutral in _UNSUPPORTED.items():
        if getattr(body, name) not in neutral:
            raise _wrong(name, "this server has no such option", "unsupported")
    given = {name: getattr(body, name) for name in _EXTENSIONS}
    settings = {name: value for name, value in given.items() if value is not None}
    tokens = body.max_completion_tokens or body.max_tokens
    if tokens is not None:
        settings["max_new_tokens"] = tokens
    if body.temperature or (body.temperature is None and (body.top_p or 1) < 1):
        settings |= {"sample": True, "temperature": body.temperature or 1.0}
        settings |= {"top_p": body.top_p} if body.top_p is not None else {}
    elif body.top_k:
        raise _wrong("top_k", "needs a temperature above 0")
    if (body.n or 1) > 1:
        settings["num_return_sequences"] = body.n
    _check_limits(settings, body, config)
    return settings


def _check_limits(
    settings: dict[str, Any], body: ChatBody, config: ServerConfig
) -> None:
    """Check the settings against the server's limits and the model's rules.

    Raises:
      ApiError: a value is out of range.
    """
    limits = {
        "max_new_tokens": ("max_tokens", config.max_tokens),
        "num_beams": ("num_beams", config.max_choices),
        "num_return_sequences": ("n", config.max_choices),
    }
    for field, (name, limit) in limits.items():
        if settings.get(field, 1) > limit:
            raise _wrong(name, f"{settings[field]}; the limit is {limit}")
    is_answer = body.template == "question" and _read_content(body.messages[-1])[0]
    defaults = ANSWER_DEFAULTS if is_answer else CAPTION_DEFAULTS
    try:
        defaults.replace(**settings)
    except ValueError as error:
        message = str(error).replace("num_return_sequences", "n")
        raise ApiError(400, message.replace("sample=True", "a temperature")) from None


def make_request(
    body: ChatBody,
    talk: Conversation,
    images: tuple[Pixels, ...],
    settings: dict[str, Any],
    sample: tuple[int, int],
) -> CaptionRequest | AnswerRequest:
    """Return the engine's request.

    Args:
      body: the body.
      talk: its conversation.
      images: the images of the conversation.
      settings: from `decoding_settings`.
      sample: seed and number of samples.

    Raises:
      ApiError: earlier turns are given with a prompt that is no question.
    """
    seed, number = sample
    options: dict[str, Any] = {
        "settings": settings,
        "seed": seed,
        "sample_id": number,
    }
    if talk.text and body.template == "question":
        return AnswerRequest(images, talk.text, talk.turns, **options)
    if talk.turns:
        raise _wrong("messages", "earlier turns need a question after them")
    return CaptionRequest(images, talk.text or None, **options)


@dataclasses.dataclass(frozen=True)
class Completion:
    """Finished texts, as OpenAI's API returns them.

    Attributes:
      model: name of the model.
      choices: text and finish reason of each.
      usage: numbers of tokens.
    """

    model: str
    choices: tuple[tuple[str, str], ...]
    usage: dict[str, int]
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def body(self) -> dict[str, Any]:
        """Return the body of an answer."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(self.choices)
        ]
        return self._head("chat.completion") | {"choices": choices, "usage": self.usage}

    def events(self, include_usage: bool) -> Iterator[str]:
        """Yield server-sent events: the finished texts, word by word."""
        head = self._head("chat.completion.chunk")
        if include_usage:
            head["usage"] = None  # but in the last event
        for index, (text, reason) in enumerate(self.choices):
            deltas = [{"content": piece} for piece in re.findall(r"\s*\S+|\s+$", text)]
            for delta in ({"role": "assistant", "content": ""}, *deltas, {}):
                end = None if delta else reason
                choice = {"index": index, "delta": delta, "finish_reason": end}
                yield _event(head | {"choices": [choice]})
        if include_usage:
            yield _event(head | {"choices": [], "usage": self.usage})
        yield "data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
        }


def complete(
    model: Blip2,
    name: str,
    body: ChatBody,
    request: CaptionRequest | AnswerRequest,
    texts: Sequence[str],
) -> Completion:
    """Cut finished texts at stop strings, count tokens and say why each ended."""
    is_answer = isinstance(request, AnswerRequest)
    defaults = ANSWER_DEFAULTS if is_answer else CAPTION_DEFAULTS
    limit = request.settings.get("max_new_tokens", defaults.max_new_tokens)
    counts = [model.count_tokens(text) if text else 0 for text in texts]
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    choices = []
    for text, count in zip(texts, counts, strict=True):
        places = [place for stop in stops if (place := text.find(stop)) >= 0]
        is_cut = not places and count >= limit
        choices.append(
            (text[: min(places, default=None)], "length" if is_cut else "stop")
        )
    size = (
        model.prompt_size(question=request.question, history=request.history)
        if isinstance(request, AnswerRequest)
        else model.prompt_size(request.prompt)
    )
    queries = model.model.config.qformer.num_queries * len(request.images)
    usage = {"prompt_tokens": size.tokens + queries, "completion_tokens": sum(counts)}
    usage["total_tokens"] = sum(usage.values())
    return Completion(name, tuple(choices), usage)


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _wrong(param: str, message: str, code: str = "") -> ApiError:
    return ApiError(400, f"{param}: {message}", param=param, code=code)
