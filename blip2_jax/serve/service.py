"""`Service`: the models of a server, their engines, and how requests wait for them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from fastapi import Request

from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.serve import batching, requests
from blip2_jax.serve.api_errors import ApiError, as_api_error
from blip2_jax.serve.metrics import Metrics
from blip2_jax.serve.server_config import ServerConfig

T = TypeVar("T")
_DECODERS = 4  # threads that decode images
_MAX_WARM_WORDS = 100
_RETRY = 0.5  # seconds until a full queue is tried again


class Service:
    """The models of a server.

    Attributes:
      config: limits.
      metrics: counters.
      engines: one engine for each model, by the model's name.
      created: time of the start, for /v1/models.
      is_ready: the programs of the common requests are compiled.
    """

    def __init__(self, models: Mapping[str, Blip2], config: ServerConfig):
        """Start an engine for each model.

        Args:
          models: by name; the first one answers requests that name none.
          config: limits.

        Raises:
          ValueError: a model was trained on features and reads no images.
        """
        for model in models.values():
            requests.image_size(model)
        self.config, self.metrics = config, Metrics()
        self.created = int(time.time())
        self.is_ready = False
        self.engines = {
            name: batching.Engine(
                model,
                max_batch=config.max_batch,
                max_queue=config.max_queue,
                max_wait=config.batch_wait,
                observer=self.metrics.count_batch,
            )
            for name, model in models.items()
        }
        engines = list(self.engines.values())
        self.metrics.add_gauge(
            "waiting", "Requests that wait.", lambda: sum(e.waiting for e in engines)
        )
        self.metrics.add_gauge(
            "running", "Requests that run.", lambda: sum(e.running for e in engines)
        )
        self._decoders = concurrent.futures.ThreadPoolExecutor(_DECODERS, "images")
        self._reading: set[concurrent.futures.Future[Any]] = set()
        # Requests without a seed have different samples and can be joined all the same.
        self._seed, self._numbers = secrets.randbits(63), itertools.count()

    def next_sample(self, seed: int | None) -> tuple[int, int]:
        """Return the seed and the number of a request's samples."""
        if seed is not None:
            return seed, 0
        return self._seed, next(self._numbers) % 2**32

    def start_warming(self) -> threading.Thread:
        """Compile the programs of common requests in a thread; sets `is_ready`."""
        thread = threading.Thread(target=self._warm, name="warming", daemon=True)
        thread.start()
        return thread

    def _warm(self) -> None:
        try:
            for engine in self.engines.values():
                for request in common_requests(engine.model, self.config.warm_tokens):
                    for size in _batch_sizes(self.config.max_batch):
                        _warm_program(engine, request, size)
        except batching.EngineClosed:
            return
        self.is_ready = True

    def close(self, timeout: float | None = None) -> bool:
        """Finish what was accepted.

        Args:
          timeout: seconds to wait for each engine, and for images; None: no limit.

        Returns:
          True if all engines have stopped and no image is being read.
        """
        self._decoders.shutdown(wait=False, cancel_futures=True)
        stopped = [engine.close(timeout=timeout) for engine in self.engines.values()]
        reading = concurrent.futures.wait(set(self._reading), timeout).not_done
        return all(stopped) and not reading

    def model_name(self, name: str) -> str:
        """Return the name of the model that answers: `name`, or that of the first."""
        return name or next(iter(self.engines))

    def engine(self, name: str) -> batching.Engine:
        """Return the engine of the model that a request names; "": of the first.

        Raises:
          ApiError: there is no such model.
        """
        name = self.model_name(name)
        if name not in self.engines:
            raise ApiError(
                404,
                f"no model {name[:100]!r}; there are {', '.join(self.engines)}",
                param="model",
                code="model_not_found",
            )
        return self.engines[name]

    def deadline(self) -> float:
        """Return the time at which a request that arrives now is given up.

        It is one of the event loop.
        """
        return asyncio.get_running_loop().time() + self.config.timeout

    async def decode(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function that reads images, in a thread."""
        future = self._decoders.submit(function, *arguments)
        self._reading.add(future)
        future.add_done_callback(self._reading.discard)
        return await asyncio.wrap_future(future)

    async def ask(
        self,
        engine: batching.Engine,
        request: batching.Request,
        client: Request,
        deadline: float,
    ) -> Any:
        """Run a request and wait for its result.

        The request is cancelled if the client leaves or the deadline passes.

        Raises:
          ApiError: there is no result, and why.
        """
        remaining = deadline - asyncio.get_running_loop().time()
        try:
            future = engine.submit(request, timeout=remaining)
        except Exception as error:
            raise as_api_error(error) from error
        result = asyncio.wrap_future(future)
        leaving = asyncio.ensure_future(_wait_until_client_leaves(client))
        try:
            await asyncio.wait(
                (result, leaving),
                timeout=remaining,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if result.done():
                return result.result()
            if leaving.done():
                raise ClientLeft
            raise TimeoutError
        except Exception as error:
            raise as_api_error(error) from error
        finally:
            leaving.cancel()
            result.cancel()


class ClientLeft(ApiError):
    """The client closed the connection; nobody reads this error."""

    def __init__(self) -> None:
        super().__init__(499, "the client closed the connection")


async def _wait_until_client_leaves(client: Request) -> None:
    while (await client.receive())["type"] != "http.disconnect":
        pass


def _warm_program(engine: batching.Engine, request: Any, size: int) -> None:
    """Run a batch of `size` equal requests, after those that wait.

    Raises:
      EngineClosed: the server stops.
    """
    call = requests.CallRequest(lambda model: request.run(model, [request] * size))
    while True:
        try:
            engine.submit(call).result()
            return
        except batching.QueueFull:
            time.sleep(_RETRY)


def _batch_sizes(max_batch: int) -> list[int]:
    """Return the sizes to which batches are padded: powers of two, and the largest."""
    powers = itertools.takewhile(lambda n: n < max_batch, (1 << i for i in range(31)))
    return [*powers, max_batch]


def common_requests(model: Blip2, tokens: int) -> Iterator[batching.Request]:
    """Yield a request for each program that clients will need.

    These are captions and answers with default settings, or matches and features, with
    texts of up to `tokens` tokens.
    """
    size = requests.image_size(model)
    image = np.zeros((size, size, 3), np.uint8)
    seen = set()
    for request in _candidates(model, image):
        if _text_tokens(model, request) > tokens:
            continue
        key = (type(request), request.join_key(model))
        if key not in seen:
            seen.add(key)
            yield request


def _candidates(model: Blip2, image: requests.Pixels) -> Iterator[batching.Request]:
    texts = [" ".join(["a"] * count) for count in range(1, _MAX_WARM_WORDS)]
    if isinstance(model, Blip2Generator):
        yield requests.CaptionRequest((image,))
        for text in texts:
            yield requests.AnswerRequest((image,), text)
    elif isinstance(model, Blip2Retriever):
        yield requests.FeaturesRequest(image)
        for text in texts:
            yield requests.MatchRequest(image, (text,))
            yield requests.FeaturesRequest(text=text)


def _text_tokens(model: Any, request: Any) -> int:
    """Return the number of tokens of a request's text."""
    if isinstance(request, requests.AnswerRequest):
        return model.prompt_size(question=request.question).tokens
    if isinstance(request, requests.MatchRequest):
        return model.count_tokens(request.texts[0]) + 2
    text = getattr(request, "text", None)
    return model.count_tokens(text) + 2 if text else 0
