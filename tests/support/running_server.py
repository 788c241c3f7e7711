"""The HTTP server on a loopback port, in a thread of this process."""

import base64
import contextlib
import io
import threading
from collections.abc import Iterator

import httpx
import uvicorn
from PIL import Image

from blip2_jax.serve.app import make_app
from blip2_jax.serve.requests import CallRequest
from blip2_jax.serve.server import GracefulServer, _listen
from blip2_jax.serve.service import Service

WAIT = 600.0  # seconds; a busy machine compiles slowly


class RunningServer:
    """A server and a client of it.

    Attributes:
      service: its models.
      gate: its outermost layer.
      url: its address.
      client: of httpx.
    """

    def __init__(self, models, config):
        self.service = Service(models, config)
        self.gate = make_app(self.service)
        listener = _listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = uvicorn.Config(self.gate, log_level="warning", lifespan="off")
        self._server = GracefulServer(settings, self.gate, drain_timeout=WAIT)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, daemon=True
        )
        self._thread.start()
        self.client = httpx.Client(base_url=self.url, timeout=WAIT)

    def stop(self) -> None:
        """Do what SIGTERM does, without waiting for the end."""
        self._server.handle_exit(15, None)

    def wait(self) -> None:
        """Wait until the server has stopped."""
        self._thread.join(WAIT)
        assert not self._thread.is_alive()

    @contextlib.contextmanager
    def busy(self, name: str = "") -> Iterator[None]:
        """Keep a model busy, so that requests wait."""
        started, released = threading.Event(), threading.Event()

        def hold(model):
            started.set()
            assert released.wait(WAIT)

        self.service.engine(name).submit(CallRequest(hold))
        assert started.wait(WAIT)
        try:
            yield
        finally:
            released.set()

    def close(self) -> None:
        """Stop the server and its engines."""
        self.client.close()
        self.stop()
        self.wait()
        self.service.close()


def data_url(image: Image.Image) -> str:
    """Return an image as a data URL."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def image_part(url: str) -> dict:
    """Return an image as a part of a message."""
    return {"type": "image_url", "image_url": {"url": url}}


def user_message(*parts) -> dict:
    """Return a message of images (URLs) and texts."""
    content = [
        image_part(part)
        if part.startswith(("data:", "http"))
        else {"type": "text", "text": part}
        for part in parts
    ]
    return {"role": "user", "content": content}
