"""What can be asked of a model through an `Engine`: typed requests, run in batches.

A request holds images of the model's size (`image_pixels`), so that a full queue needs
little memory. Requests are joined if the model can compute them in one call with arrays
of one shape: the same kind, the same settings and prompts of the same padded length.
A request's result does not depend on the others of its batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from numpy import ndarray as Array

from blip2_jax.inference import inputs
from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.retriever import Blip2Retriever, Match
from blip2_jax.inference.scoring import RankedText
from blip2_jax.models.sizes import FeaturesConfig

Pixels = UInt8[Array, "R R 3"]


def image_pixels(model: Blip2, image: Any) -> Pixels:
    """Convert an image of any form to pixels of the model's size.

    Args:
      model: the model that will read it.
      image: see `inference.user_images.as_pixels`.

    Raises:
      FileNotFoundError, TypeError, ValueError: as `as_pixels`, or the model was trained
        on features and reads no images.
    """
    return inputs.as_images([image], image_size(model))[0]


def image_size(model: Blip2) -> int:
    """Return the side in pixels of the images that a model reads.

    Raises:
      ValueError: it was trained on features and reads no images.
    """
    vision = model.model.config.vision
    if isinstance(vision, FeaturesConfig):
        raise ValueError("this model was trained on features and reads no images")
    return vision.image_size


@dataclasses.dataclass(frozen=True, eq=False)
class _TextRequest:
    """Common part of the requests that generate text.

    Attributes:
      images: the images of one row; several are read one after the other.
      settings: fields of `DecodingConfig` to change.
      seed: seed of samples; see `Blip2.caption`.
      sample_id: number of the row, by which its samples are drawn. Requests that are
        to have different samples take different numbers with one seed, so that they
        can be joined.
    """

    images: tuple[Pixels, ...]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)
    seed: int = dataclasses.field(default=0, kw_only=True)
    sample_id: int = dataclasses.field(default=0, kw_only=True)

    def _decoding_key(self) -> Hashable:
        """Return what must be equal: settings, the seed if it matters, images."""
        seed = self.seed if self.settings.get("sample") else None
        return (*sorted(self.settings.items()), seed, len(self.images))


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionRequest(_TextRequest):
    """Describe an image; the result is a list of texts, best first.

    Attributes:
      prompt: start of the caption, or an instruction; None: the model's own.
    """

    prompt: str | None = None

    def join_key(self, model: Blip2) -> Hashable:
        """Return a key; see `batching.Request`."""
        _check_images(model, self.images)
        return (self._decoding_key(), model.prompt_size(self.prompt).shape)

    def run(self, model: Blip2, requests: Sequence[CaptionRequest]) -> list[list[str]]:
        """Run requests that have the key of this one."""
        prompt = [
            model.prompt if request.prompt is None else request.prompt
            for request in requests
        ]
        texts = model.caption(_rows(requests), prompt, **_options(requests))
        return [_as_list(text) for text in texts]


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerRequest(_TextRequest):
    """Answer a question about an image; the result is a list of texts, best first.

    Attributes:
      question: the question.
      history: earlier turns of the conversation as (question, answer) pairs.
    """

    question: str
    history: tuple[tuple[str, str], ...] = ()

    def join_key(self, model: Blip2) -> Hashable:
        """Return a key; see `batching.Request`."""
        _check_images(model, self.images)
        size = model.prompt_size(question=self.question, history=self.history)
        return (self._decoding_key(), size.shape)

    def run(
        self, model: Blip2Generator, requests: Sequence[AnswerRequest]
    ) -> list[list[str]]:
        """Run requests that have the key of this one."""
        texts = model.answer(
            _rows(requests),
            [request.question for request in requests],
            history=[list(request.history) for request in requests],
            **_options(requests),
        )
        return [_as_list(text) for text in texts]


@dataclasses.dataclass(frozen=True, eq=False)
class MatchRequest:
    """Score texts against an image (stage 1); the result is a `Match` of [texts].

    Requests of one text are joined with each other, those of several texts with those
    of the same texts: then each image and each text is encoded once.
    """

    image: Pixels
    texts: tuple[str, ...]

    def join_key(self, model: Blip2) -> Hashable:
        """Return a key; see `batching.Request`."""
        _check_images(model, (self.image,))
        length = _retriever(model).text_length(self.texts)
        return length if len(self.texts) == 1 else self.texts

    def run(
        self, model: Blip2Retriever, requests: Sequence[MatchRequest]
    ) -> list[Match]:
        """Run requests that have the key of this one."""
        images = np.stack([request.image for request in requests])
        if len(self.texts) > 1:
            scores = model.match(images, self.texts, pairs="all")
        else:
            texts = [text for request in requests for text in request.texts]
            scores = Match(*(s[:, None] for s in model.match(images, texts)))
        return [Match(*row) for row in zip(*scores, strict=True)]


@dataclasses.dataclass(frozen=True, eq=False)
class RankRequest:
    """Rank candidate texts for an image; the result is a list of `RankedText`.

    Attributes:
      images: as in `CaptionRequest`.
      candidates: the texts.
      question: question that they answer; None: they are captions.
      prompt: what captions follow; None: the model's own.
      length_penalty: see `Blip2.rank`.
    """

    images: tuple[Pixels, ...]
    candidates: tuple[str, ...]
    question: str | None = None
    prompt: str | None = None
    length_penalty: float = 0.0

    def join_key(self, model: Blip2) -> Hashable:
        """Return a key; see `batching.Request`."""
        _check_images(model, self.images)
        counts = [model.count_tokens(text) + 1 for text in self.candidates]
        length = inputs.padded_length(max(counts, default=1))
        width = 1 << (len(self.candidates) - 1).bit_length()
        shape = model.prompt_size(self.prompt, question=self.question).shape
        settings = (self.question is None, self.length_penalty, len(self.images))
        return (*settings, length, width, shape)

    def run(
        self, model: Blip2, requests: Sequence[RankRequest]
    ) -> list[list[RankedText]]:
        """Run requests that have the key of this one."""
        if self.question is None:
            texts: dict[str, Any] = {
                "prompts": [
                    model.prompt if request.prompt is None else request.prompt
                    for request in requests
                ]
            }
        else:
            texts = {"questions": [request.question for request in requests]}
        return model.rank(
            _rows(requests),
            [list(request.candidates) for request in requests],
            length_penalty=self.length_penalty,
            **texts,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class FeaturesRequest:
    """Embed an image, a text or a pair of them; the result is a dict of arrays.

    The arrays are those of one row of `Blip2.features`; those of a text end after its
    last token.

    Attributes:
      image: an image; None: `text` alone is embedded.
      text: a text (stage 1); None: the image alone is embedded.
    """

    image: Pixels | None = None
    text: str | None = None

    @property
    def mode(self) -> str:
        """Return the mode of `Blip2.features`."""
        if self.text is None:
            return "image"
        return "text" if self.image is None else "multimodal"

    def join_key(self, model: Blip2) -> Hashable:
        """Return a key; see `batching.Request`."""
        _check_images(model, () if self.image is None else (self.image,))
        if self.text is None:
            return "image"
        return (self.mode, _retriever(model).text_length((self.text,)))

    def run(
        self, model: Any, requests: Sequence[FeaturesRequest]
    ) -> list[dict[str, Shaped[Array, "..."]]]:
        """Run requests that have the key of this one."""
        options: dict[str, Any] = {}
        images = [request.image for request in requests if request.image is not None]
        if images:
            options["images"] = np.stack(images)
        if self.text is not None:
            options["texts"] = [request.text for request in requests]
        arrays = model.features(**options, mode=self.mode)
        rows = [
            {name: array[index] for name, array in arrays.items()}
            for index in range(len(requests))
        ]
        return [_without_padding(row) for row in rows]


@dataclasses.dataclass(frozen=True, eq=False)
class CallRequest:
    """Call a function of the model, alone, e.g. for attention maps.

    Attributes:
      function: takes the model; its result is that of the request.
    """

    function: Callable[[Any], Any]

    def join_key(self, model: Any) -> Hashable:
        """Return a key that no other request has."""
        del model
        return id(self)

    def run(self, model: Any, requests: Sequence[CallRequest]) -> list[Any]:
        """Call the function."""
        del requests  # this one alone
        return [self.function(model)]


def _rows(requests: Sequence[Any]) -> UInt8[Array, "B images R R 3"]:
    """Stack the images of requests, which have as many images each.

    One image per row is passed without the axis of images.
    """
    rows = np.stack([np.stack(request.images) for request in requests])
    return rows[:, 0] if rows.shape[1] == 1 else rows


def _options(requests: Sequence[_TextRequest]) -> dict[str, Any]:
    """Return the decoding options of requests that share them."""
    first = requests[0]
    ids = [request.sample_id for request in requests]
    return {"seed": first.seed, "sample_ids": ids, **first.settings}


def _as_list(texts: str | list[str]) -> list[str]:
    """Return several texts of one row as they are, a single one as a list."""
    return [texts] if isinstance(texts, str) else texts


def _without_padding(
    row: dict[str, Shaped[Array, "..."]],
) -> dict[str, Shaped[Array, "..."]]:
    """Cut the token arrays of a text after its last token."""
    if "text_mask" not in row:
        return row
    length = int(row["text_mask"].sum())
    return {name: array[:length] for name, array in row.items()}


def _check_images(model: Blip2, images: Sequence[Pixels]) -> None:
    """Check that images have the model's size.

    Raises:
      ValueError: one of them has not; see `image_pixels`.
    """
    size = image_size(model) if images else 0
    for image in images:
        if image.shape != (size, size, 3):
            raise ValueError(
                f"this model reads images of {size} x {size} pixels, not "
                f"{list(image.shape)}: convert them with image_pixels"
            )


def _retriever(model: Blip2) -> Blip2Retriever:
    """Return the model if it is of stage 1.

    Raises:
      ValueError: it is of stage 2.
    """
    if not isinstance(model, Blip2Retriever):
        raise ValueError(
            "texts are matched and embedded by stage-1 models; this one is stage 2"
        )
    return model
