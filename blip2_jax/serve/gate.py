"""`Gate`, the outermost layer of the HTTP server: who may enter, and with how much."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from blip2_jax.serve.api_errors import ApiError, queue_is_full, server_is_stopping
from blip2_jax.serve.metrics import Metrics
from blip2_jax.serve.server_config import ServerConfig

Scope = MutableMapping[str, Any]
ASGIMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/health", "/ready")  # without a key, and while the server stops
CLIENT_LEFT = 499  # the status that proxies log for it


class Gate:
    """Checks key, load and body of each request before the application sees it.

    Attributes:
      in_flight: number of requests that were let in and are not answered yet.
      is_stopping: refuse new requests.
    """

    def __init__(
        self,
        app: Application,
        config: ServerConfig,
        metrics: Metrics,
        paths: Collection[str],
    ):
        """Wrap an application.

        Args:
          app: the application.
          config: limits and key.
          metrics: counts the requests.
          paths: the endpoints; others are counted together.
        """
        self._app, self._config, self._metrics = app, config, metrics
        self._paths = frozenset(paths)
        self.in_flight = 0
        self.is_stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), CLIENT_LEFT

        async def record_status(message: ASGIMessage) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._enter(scope, receive, record_status)
        except ApiError as error:
            await error.response()(scope, receive, record_status)
        except asyncio.CancelledError:  # the server ends before the answer
            if status != CLIENT_LEFT:  # the answer has begun
                raise
            await server_is_stopping().response()(scope, receive, record_status)
        finally:
            path = scope["path"] if scope["path"] in self._paths else ""
            self._metrics.count_request(path, status, time.monotonic() - start)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, read its body and pass it on.

        Raises:
          ApiError: the request is refused.
        """
        if scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        if self.is_stopping:
            raise server_is_stopping()
        headers = dict(scope["headers"])
        self._check_key(headers.get(b"authorization", b""))
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        # Bodies and decoded images are in memory: their number is bounded, too.
        if self.in_flight >= self._config.max_queue + self._config.max_batch:
            raise queue_is_full()
        self.in_flight += 1
        try:
            length = headers.get(b"content-length", b"")
            body = await self._read_body(receive, length)
            await self._app(scope, _replay(body, receive), send)
        except _ClientLeft:
            pass
        finally:
            self.in_flight -= 1

    def _check_key(self, header: bytes) -> None:
        """Check the key of a request, in a time that tells nothing about the key."""
        key = self._config.api_key.encode()
        if key and not hmac.compare_digest(header, b"Bearer " + key):
            raise ApiError(
                401,
                "this server needs a key: send the header 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read_body(self, receive: Receive, length: bytes) -> bytes:
        """Read a body within the limits of size and time.

        Raises:
          ApiError: it is too large, or too slow.
        """
        if length.isdigit() and int(length[:20]) > self._config.max_body:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.upload_timeout):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _ClientLeft
                    body += message.get("body", b"")
                    if len(body) > self._config.max_body:
                        raise self._too_large()
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            seconds = self._config.upload_timeout
            raise ApiError(
                408,
                f"the body did not arrive within {seconds:g} s",
                code="slow_upload",
                headers={"Connection": "close"},
            ) from None

    def _too_large(self) -> ApiError:
        limit = self._config.max_body / 1e6
        return ApiError(413, f"the body is larger than {limit:g} MB", code="too_large")


class _ClientLeft(Exception):
    """The client closed the connection before its body was complete."""


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read, then what follows."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> ASGIMessage:
        return messages.pop() if messages else await receive()

    return replay
