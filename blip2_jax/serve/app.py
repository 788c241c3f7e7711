"""The HTTP server's endpoints."""

from __future__ import annotations

import asyncio
import base64
import functools
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

import blip2_jax
from blip2_jax.serve import chat
from blip2_jax.serve.api_errors import ApiError, add_error_handlers
from blip2_jax.serve.batching import Engine
from blip2_jax.serve.chat_schema import (
    ChatBody,
    EmbeddingsBody,
    ImagePart,
    MatchBody,
    RankBody,
    TextPart,
)
from blip2_jax.serve.gate import Gate
from blip2_jax.serve.received_images import read_image
from blip2_jax.serve.requests import (
    CallRequest,
    FeaturesRequest,
    MatchRequest,
    Pixels,
    RankRequest,
)
from blip2_jax.serve.service import Service

PATHS = (
    "/v1/chat/completions", "/v1/embeddings", "/v1/match", "/v1/rank", "/v1/models",
    "/health", "/ready", "/metrics",
)  # fmt: skip


def make_app(service: Service) -> Gate:
    """Make the ASGI application of a server."""
    app = FastAPI(title="blip2_jax", version=blip2_jax.__version__, docs_url=None)
    gate = Gate(app, service.config, service.metrics, PATHS)
    add_error_handlers(app)
    _add_state(app, service, gate)
    _add_models(app, service)
    _add_chat(app, service)
    _add_stage1(app, service)
    return gate


def _add_state(app: FastAPI, service: Service, gate: Gate) -> None:
    """Add /health, /ready and /metrics."""
    service.metrics.add_gauge("in_flight", "Requests inside.", lambda: gate.in_flight)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Say if the common programs are compiled and new requests are taken."""
        is_ready = service.is_ready and not gate.is_stopping
        status = "ready" if is_ready else "stopping" if gate.is_stopping else "starting"
        return JSONResponse({"status": status}, 200 if is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return the counters."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_models(app: FastAPI, service: Service) -> None:
    """Add /v1/models."""

    def describe(name: str) -> dict[str, Any]:
        kind = type(service.engine(name).model).__name__
        return {
            "id": name,
            "object": "model",
            "created": service.created,
            "owned_by": "blip2_jax",
            "kind": kind,
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the models."""
        return {"object": "list", "data": [describe(name) for name in service.engines]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """Describe one model."""
        return describe(name)


def _add_chat(app: FastAPI, service: Service) -> None:
    """Add /v1/chat/completions."""

    @app.post("/v1/chat/completions")
    async def completions(body: ChatBody, client: Request) -> Response:
        """Describe images, or answer the last question of a conversation about them."""
        deadline, engine = service.deadline(), service.engine(body.model)
        settings = chat.decoding_settings(body, service.config)
        talk = chat.read_conversation(body.messages, service.config)
        images = await _images(service, engine, talk.image_urls, deadline)
        sample = service.next_sample(body.seed)
        request = chat.make_request(body, talk, images, settings, sample)
        texts = await service.ask(engine, request, client, deadline)
        name = service.model_name(body.model)
        done = chat.complete(engine.model, name, body, request, texts)
        if not body.stream:
            return JSONResponse(done.body())
        options = body.stream_options
        events = done.events(bool(options and options.include_usage))
        return StreamingResponse(_send(events), media_type="text/event-stream")


async def _send(events: Iterator[str]) -> AsyncIterator[str]:
    """Yield events, which are at hand, without a thread."""
    for event in events:
        yield event


def _add_stage1(app: FastAPI, service: Service) -> None:
    """Add /v1/match, /v1/rank and /v1/embeddings."""

    @app.post("/v1/match")
    async def match(body: MatchBody, client: Request) -> dict[str, Any]:
        """Score texts against an image (stage 1)."""
        deadline, engine = service.deadline(), service.engine(body.model)
        _check_texts("texts", body.texts, service)
        (image,) = await _images(service, engine, [body.image], deadline)
        request = MatchRequest(image, tuple(body.texts))
        scores = await service.ask(engine, request, client, deadline)
        data = [
            {"index": index, "text": text, "itc": float(itc), "itm": float(itm)}
            for index, (text, itc, itm) in enumerate(
                zip(body.texts, *scores, strict=True)
            )
        ]
        return {"object": "list", "data": data, "model": service.model_name(body.model)}

    @app.post("/v1/rank")
    async def rank(body: RankBody, client: Request) -> dict[str, Any]:
        """Rank candidate texts by their log-probability, best first."""
        deadline, engine = service.deadline(), service.engine(body.model)
        if body.question is not None and body.prompt is not None:
            raise ApiError(400, "prompt: give prompt or question, not both")
        texts = [*body.candidates, body.question or "", body.prompt or ""]
        _check_texts("candidates", texts, service)
        (image,) = await _images(service, engine, [body.image], deadline)
        request = RankRequest(
            (image,),
            tuple(body.candidates),
            body.question,
            body.prompt,
            body.length_penalty,
        )
        ranked = await service.ask(engine, request, client, deadline)
        data = [
            {"index": each.candidate, "text": each.text, "score": float(each.score)}
            for each in ranked
        ]
        return {"object": "list", "data": data, "model": service.model_name(body.model)}

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsBody, client: Request) -> dict[str, Any]:
        """Embed texts and images in the space of the contrastive head (stage 1)."""
        return await _embed(service, body, client)


async def _embed(
    service: Service, body: EmbeddingsBody, client: Request
) -> dict[str, Any]:
    """Answer /v1/embeddings."""
    deadline, engine = service.deadline(), service.engine(body.model)
    items = [body.input] if isinstance(body.input, str) else body.input
    items = [item.text if isinstance(item, TextPart) else item for item in items]
    texts = [item for item in items if isinstance(item, str)]
    urls = [item.image_url.url for item in items if isinstance(item, ImagePart)]
    if not items or not all(texts):
        raise ApiError(400, "input: expected texts or images, not empty", param="input")
    if body.dimensions is not None:
        raise ApiError(400, "dimensions: the model has one size", param="dimensions")
    _check_texts("input", texts, service)
    images = iter(await _images(service, engine, urls, deadline, at_least=0))
    requests = [
        FeaturesRequest(text=item)
        if isinstance(item, str)
        else FeaturesRequest(next(images))
        for item in items
    ]
    if len(requests) == 1:
        rows = [await service.ask(engine, requests[0], client, deadline)]
    else:
        call = CallRequest(functools.partial(_run_together, requests))
        rows = await service.ask(engine, call, client, deadline)
    model = engine.model
    tokens = sum(model.count_tokens(text) for text in texts)
    return {
        "object": "list",
        "data": [_embedding(index, row, body) for index, row in enumerate(rows)],
        "model": service.model_name(body.model),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _run_together(requests: Sequence[FeaturesRequest], model: Any) -> list[Any]:
    """Run features of images and texts of one user, in the order of the requests.

    In a `CallRequest` they take one place in the queue and are joined with no others.
    """
    for request in requests:
        request.join_key(model)  # checks it
    results: dict[int, Any] = {}
    for mode in sorted({request.mode for request in requests}):
        alike = [request for request in requests if request.mode == mode]
        rows = alike[0].run(model, alike)
        results |= {id(r): row for r, row in zip(alike, rows, strict=True)}
    return [results[id(request)] for request in requests]


def _embedding(
    index: int, row: dict[str, np.ndarray], body: EmbeddingsBody
) -> dict[str, Any]:
    """Return the embedding of a text, or the normalised mean of an image's queries."""
    result: dict[str, Any] = {"object": "embedding", "index": index}
    if "text_embeds_proj" in row:
        vector = row["text_embeds_proj"][0]  # [CLS]
    else:
        queries = row["image_embeds_proj"]
        mean = queries.mean(axis=0)
        vector = mean / np.linalg.norm(mean)
        if body.queries:
            result["query_embeddings"] = queries.tolist()
    vector = np.asarray(vector, "<f4")
    if body.encoding_format == "base64":
        return result | {"embedding": base64.b64encode(vector.tobytes()).decode()}
    return result | {"embedding": vector.tolist()}


def _check_texts(param: str, texts: Sequence[str], service: Service) -> None:
    """Check number and length of texts.

    Raises:
      ApiError: there are too many, or they are too long.
    """
    if len(texts) > service.config.max_texts + 2:
        limit = service.config.max_texts
        raise ApiError(400, f"{param}: the limit is {limit} texts", param=param)
    chat.check_length(param, texts, service.config)


async def _images(
    service: Service,
    engine: Engine,
    urls: Sequence[str],
    deadline: float,
    at_least: int = 1,
) -> tuple[Pixels, ...]:
    """Read the images of a request in threads, before its deadline.

    Raises:
      ApiError: one of them is wrong, or there are too many or too few.
    """
    limit = service.config.max_images
    if not at_least <= len(urls) <= limit:
        raise ApiError(400, f"{len(urls)} images: expected {at_least} to {limit}")
    async with asyncio.timeout_at(deadline):
        images = [
            service.decode(
                read_image, engine.model, url, service.config, f"image {index}"
            )
            for index, url in enumerate(urls)
        ]
        return tuple(await asyncio.gather(*images))
