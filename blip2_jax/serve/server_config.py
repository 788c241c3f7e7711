"""Settings of the HTTP server: limits of what a request may ask for and cost."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """Settings of the server; `blip2-jax serve` has an option for most of them.

    Attributes:
      api_key: key that requests must carry; "" lets everybody in.
      allow_urls: download images from http(s) URLs of public addresses.
      max_batch: largest number of requests that the model computes together.
      batch_wait: seconds that an idle model waits for others to join a request.
      max_queue: number of requests that wait; more are refused (429).
      timeout: seconds until a request is given up (504).
      upload_timeout: seconds until the whole body must have arrived (408).
      max_body: bytes of a body (413).
      max_pixels: pixels of an image.
      max_images: images of a request.
      max_prompt: characters of all texts of a request together.
      max_texts: candidates, texts or inputs of a request.
      max_tokens: largest `max_tokens`.
      max_choices: largest `n`, and number of beams.
      warm_tokens: prompts of up to so many tokens are compiled before the server is
        ready.
    """

    api_key: str = ""
    allow_urls: bool = False
    max_batch: int = 8
    batch_wait: float = 0.005
    max_queue: int = 64
    timeout: float = 60.0
    upload_timeout: float = 20.0
    max_body: int = 20_000_000
    max_pixels: int = 25_000_000
    max_images: int = 8
    max_prompt: int = 4000
    max_texts: int = 64
    max_tokens: int = 256
    max_choices: int = 8
    warm_tokens: int = 16

    def __post_init__(self) -> None:
        """Check the values."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            lowest = 0 if field.name in ("batch_wait", "warm_tokens") else 1e-3
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and not lowest <= value < float("inf"):
                raise ValueError(f"{field.name}={value!r}: expected a number above 0")
