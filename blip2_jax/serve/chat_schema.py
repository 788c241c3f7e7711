"""Bodies of requests to the HTTP server. Unknown fields are refused.

Every list has a largest length: each wrong item is an error, which takes far more time
and memory than the item.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
_MAX_PARTS = 64  # of a message
_MAX_ITEMS = 1024  # texts or inputs; `ServerConfig.max_texts` is lower


class Body(BaseModel):
    """Base of all bodies: types are not converted, unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _keep_one_unknown(cls, data: Any) -> Any:
        """Drop unknown fields but the first: each would be an error of its own."""
        if not isinstance(data, dict):
            return data
        surplus = set([name for name in data if name not in cls.model_fields][1:])
        return {name: value for name, value in data.items() if name not in surplus}


class ImageUrl(Body):
    """Where an image is."""

    url: Text
    detail: Literal["auto", "low", "high"] = "auto"  # all images have the model's size


class TextPart(Body):
    """A piece of text in a message."""

    type: Literal["text"]
    text: str


class ImagePart(Body):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Body):
    """A turn of a conversation."""

    role: Literal["user", "assistant", "system", "developer", "tool", "function"]
    content: str | Annotated[list[Part], Field(max_length=_MAX_PARTS)]
    name: str | None = None
    # Null in the messages of this server, which OpenAI's client sends back.
    refusal: None = None


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatBody(Body):
    """The body of /v1/chat/completions.

    The last fields are not OpenAI's: they are fields of `DecodingConfig`, and
    `template`, which says if the text is a question, put into the model's template of
    questions, or the prompt itself.
    """

    model: str = ""
    messages: Annotated[list[Message], Field(min_length=1, max_length=200)]
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    # Refused if they ask for something.
    frequency_penalty: Number | None = None
    presence_penalty: Number | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    # Accepted without effect.
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    # Extensions.
    template: Literal["question", "none"] = "question"
    num_beams: Annotated[int, Field(ge=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0)] | None = None
    length_penalty: Annotated[Number, Field(ge=-10, le=10)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None


class EmbeddingsBody(Body):
    """The body of /v1/embeddings."""

    model: str = ""
    input: str | Annotated[list[str | Part], Field(max_length=_MAX_ITEMS)]
    encoding_format: Literal["float", "base64"] = "float"
    queries: bool = False  # the vectors of all queries of an image, too
    dimensions: int | None = None
    user: str | None = None


class MatchBody(Body):
    """The body of /v1/match."""

    model: str = ""
    image: Text
    texts: Annotated[list[Text], Field(min_length=1, max_length=_MAX_ITEMS)]


class RankBody(Body):
    """The body of /v1/rank."""

    model: str = ""
    image: Text
    candidates: Annotated[list[Text], Field(min_length=1, max_length=_MAX_ITEMS)]
    question: Text | None = None
    prompt: str | None = None
    length_penalty: Annotated[Number, Field(ge=-10, le=10)] = 0.0
