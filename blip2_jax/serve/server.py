"""Run the HTTP server until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping
from types import FrameType

import uvicorn

from blip2_jax.inference.model import Blip2
from blip2_jax.serve.app import make_app
from blip2_jax.serve.gate import Gate
from blip2_jax.serve.server_config import ServerConfig
from blip2_jax.serve.service import Service

_LOG = logging.getLogger("blip2_jax.serve")
_BACKLOG = 2048
KEEP_ALIVE = 30  # seconds that an idle connection stays open


class GracefulServer(uvicorn.Server):
    """A server that still answers, with 503, while it finishes what it accepted.

    The first SIGTERM or SIGINT makes it refuse new requests; it exits after the last
    answer, or after `drain_timeout`. A second signal makes it exit at once.
    """

    def __init__(self, config: uvicorn.Config, gate: Gate, drain_timeout: float):
        super().__init__(config)
        self._gate, self._drain_timeout = gate, drain_timeout
        self._stop_at = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop, or stop at once if that has begun."""
        if self._gate.is_stopping:
            self.should_exit = self.force_exit = True
            return
        self._gate.is_stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Return True if the server is to exit."""
        if self._gate.is_stopping:
            now = asyncio.get_running_loop().time()
            if self._stop_at == float("inf"):
                _LOG.info("stopping after %d requests", self._gate.in_flight)
                self._stop_at = now + self._drain_timeout
            self.should_exit |= self._gate.in_flight == 0 or now > self._stop_at
        return await super().on_tick(counter)


def serve(
    models: Mapping[str, Blip2], config: ServerConfig, host: str, port: int
) -> None:
    """Serve models until SIGTERM or SIGINT.

    If a program or a download still runs after the last answer, this ends the process
    with code 0: Python would wait for the thread of a download, and JAX aborts a
    process that ends inside a program.

    Args:
      models: by name; the first one answers requests that name none.
      config: limits.
      host: address to listen on.
      port: 0 takes a free one.

    Raises:
      OSError: the address cannot be used.
      ValueError: a model cannot be served.
    """
    listener = _listen(host, port)
    service = Service(models, config)
    gate = make_app(service)
    settings = uvicorn.Config(
        gate,
        log_level="warning",
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    server = GracefulServer(settings, gate, drain_timeout=2 * config.timeout)
    name = f"[{host}]" if ":" in host else host
    address = f"{name}:{listener.getsockname()[1]}"
    service.start_warming()
    print(
        f"serving {', '.join(models)} on http://{address}", file=sys.stderr, flush=True
    )
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        is_idle = service.close(timeout=0.0 if server.force_exit else 1.0)
    print("stopped", file=sys.stderr, flush=True)
    if not is_idle:
        sys.stdout.flush()
        os._exit(0)


def _listen(host: str, port: int) -> socket.socket:
    """Open the listening socket before anything slow is done."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)  # clients may connect from now on, and wait
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{error.strerror}: {host}:{port}") from None
    return listener
