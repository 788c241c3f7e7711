"""Errors of the HTTP server, in the shape of OpenAI's API.

{"error": {"message": "...", "type": "invalid_request_error",
           "param": "messages.0.content", "code": "invalid_image"}}
"""

from __future__ import annotations

import concurrent.futures
import json
import logging
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from blip2_jax.serve.batching import DeadlineExceeded, EngineClosed, QueueFull

_LOG = logging.getLogger("blip2_jax.serve")
_LONGEST = 500  # characters of a message
# How pydantic names, in the place of an error, the type that it tried.
_TYPE_NAME = re.compile(r"(constrained-)?str$|(list|tagged-union)\[")
_PARTS = ("text", "image_url")  # names of types after an index; else of fields
_JSON_TYPES = {
    bool: "true or false", int: "a number", float: "a number", str: "a string",
    list: "a list", dict: "an object",
}  # fmt: skip
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error that the client is told.

    Attributes:
      status: HTTP status.
      param: the part of the request that is wrong; "" for none.
      code: a short name for programs; "" for none.
      headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str = "",
        code: str = "",
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """Return the answer. It is ASCII: texts may hold halves of characters."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": textwrap.shorten(str(self), _LONGEST, placeholder=" ..."),
            "type": _TYPES.get(self.status, default),
            "param": self.param or None,
            "code": self.code or None,
        }
        return Response(
            json.dumps({"error": error}),
            self.status,
            headers=self.headers,
            media_type="application/json",
        )


def queue_is_full(seconds: float = 1.0) -> ApiError:
    """Return the error of a server that has enough to do.

    Args:
      seconds: after which the client should try again.
    """
    wait = str(max(1, math.ceil(seconds)))
    return ApiError(
        429,
        f"the server is busy: try again in {wait} s",
        code="queue_full",
        headers={"Retry-After": wait},
    )


def server_is_stopping() -> ApiError:
    """Return the error of a server that finishes its last requests."""
    return ApiError(
        503,
        "the server is stopping",
        code="stopping",
        headers={"Retry-After": "5", "Connection": "close"},
    )


def as_api_error(error: BaseException) -> ApiError:
    """Say which answer an error of the model or the engine is.

    Errors of this package about inputs (ValueError, TypeError) are the client's fault.
    Others are not expected: they are logged, and the client is not told what they say.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return queue_is_full()
    if isinstance(error, EngineClosed | concurrent.futures.CancelledError):
        return server_is_stopping()
    if isinstance(error, DeadlineExceeded | TimeoutError):
        return ApiError(504, "the request took too long", code="timeout")
    if isinstance(error, ValueError | TypeError):
        return ApiError(400, str(error) or "the request cannot be computed")
    _LOG.error("a request failed", exc_info=error)
    return ApiError(500, "the model failed; the server's log has the error")


def add_error_handlers(app: FastAPI) -> None:
    """Answer all errors of an application in one shape."""

    async def answer_error(request: Request, error: Exception) -> Response:
        del request
        return as_api_error(error).response()

    async def answer_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        headers = error.headers
        return ApiError(error.status_code, message, headers=headers).response()

    async def answer_wrong_body(request: Request, error: Exception) -> Response:
        del request
        assert isinstance(error, RequestValidationError)
        return _wrong_body(error.errors()).response()

    app.add_exception_handler(ApiError, answer_error)
    for kind in (QueueFull, EngineClosed, TimeoutError, ValueError, Exception):
        app.add_exception_handler(kind, answer_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(RequestValidationError, answer_wrong_body)


def _wrong_body(errors: Any) -> ApiError:
    """Describe the first thing that is wrong in a body.

    A field of several types has an error of each: that of the given type is described.
    """
    first = _of_given_type(errors) if errors else {}
    place = _place(first.get("loc", ())[1:])
    message = first.get("msg", "the body is not valid")
    if first.get("type") == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {message}")
    if first.get("type") == "extra_forbidden":
        message = "this server has no such option"
    if first.get("type") in ("model_type", "model_attributes_type"):
        message = "Input should be an object"
    if str(first.get("type")).endswith("_type"):
        message += f", not {_JSON_TYPES.get(type(first.get('input')), 'null')}"
    return ApiError(400, f"{place or 'body'}: {message}", param=place)


def _of_given_type(errors: Sequence[Any]) -> Any:
    """Return the first error, or the one that replaces it.

    That is the deepest error inside the value that the first one refuses, if the first
    says that a list or an object is no string.
    """
    first = errors[0]
    if first["type"] != "string_type" or not isinstance(first["input"], list | dict):
        return first
    place = tuple(first["loc"][:-1])  # without the type's name
    others = [each for each in errors[1:] if tuple(each["loc"][: len(place)]) == place]
    return max(others, key=lambda each: len(each["loc"]), default=first)


def _place(names: Sequence[Any]) -> str:
    """Return the place of an error without the names of types."""
    kept = []
    for index, name in enumerate(names):
        before = names[index - 1] if index else ""
        is_part = name in _PARTS and (
            isinstance(before, int) or str(before).startswith("tagged-union[")
        )
        if not is_part and not _TYPE_NAME.match(str(name)):
            kept.append(str(name)[:60])
    return ".".join(kept)
