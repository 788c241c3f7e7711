"""What a model is asked about each of many images: a caption, answers or scores."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.inference import inputs
from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.models.sizes import FeaturesConfig

_DIGITS = 4  # of scores: further ones depend on the device

Row = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class ImageRequest:
    """What to write about each image: captions, answers or scores of texts.

    Attributes:
      prompt: start of captions; None: the model's own.
      questions: questions to answer, in place of captions.
      texts: texts to score, in place of captions.
      seed: seed of samples. They depend on it and the number of the image.
      settings: decoding settings, the keyword arguments of `Blip2.caption`.
    """

    prompt: str | None = None
    questions: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    seed: int = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the values of a row."""
        if self.texts:
            return ("text", "itc", "itm")
        return ("question", "answer") if self.questions else ("caption",)

    def check_model(self, model: Blip2) -> int:
        """Check that a model can do what is asked; returns its image size in pixels.

        Raises:
          ValueError: it is of the other stage, or has no image encoder.
        """
        vision = model.model.config.vision
        if isinstance(vision, FeaturesConfig):
            raise ValueError("this model was trained on features and reads no images")
        if self.texts and not isinstance(model, Blip2Retriever):
            raise ValueError("texts are scored by stage-1 models; this one is stage 2")
        if self.questions and not isinstance(model, Blip2Generator):
            raise ValueError("questions need a language model; this is a stage-1 model")
        return vision.image_size

    def rows(
        self, model: Blip2, images: UInt8[Array, "B R R 3"], numbers: Sequence[int]
    ) -> list[list[Row]]:
        """Return the rows about each of at most `model.batch_size` images.

        The batch is padded to `model.batch_size`: all batches run the same compiled
        program, so that no row depends on how images are divided into batches.

        Args:
          model: the model.
          images: images of the model's size.
          numbers: number of each image, by which its samples are drawn.
        """
        count = len(images)
        images = inputs.pad_batch(images, model.batch_size)
        padded = [*numbers, *[numbers[-1]] * (len(images) - count)]
        if self.texts:
            return self._scores(model, images)[:count]
        if self.questions:
            return self._answers(model, images, padded)[:count]
        captions = model.caption(
            images,
            self.prompt,
            seed=self.seed,
            sample_ids=padded,
            **self.settings,
        )
        return [[(text,) for text in _as_list(texts)] for texts in captions[:count]]

    def _answers(
        self, model: Any, images: UInt8[Array, "B R R 3"], numbers: Sequence[int]
    ) -> list[list[Row]]:
        """Answer every question about every image."""
        each = len(self.questions)
        pairs = itertools.product(range(len(images)), range(each))
        answers = model.answer(
            images,
            self.questions * len(images),
            image_of=[index for index in range(len(images)) for _ in range(each)],
            seed=self.seed,
            sample_ids=[numbers[image] * each + text for image, text in pairs],
            **self.settings,
        )
        return [
            [
                (question, text)
                for question, texts in zip(self.questions, of_image, strict=True)
                for text in _as_list(texts)
            ]
            for of_image in zip(*[iter(answers)] * each, strict=True)
        ]

    def _scores(self, model: Any, images: UInt8[Array, "B R R 3"]) -> list[list[Row]]:
        """Score every text with every image."""
        scores = model.match(images, self.texts, pairs="all")
        return [
            [
                (text, round(float(itc), _DIGITS), round(float(itm), _DIGITS))
                for text, itc, itm in zip(self.texts, *row, strict=True)
            ]
            for row in zip(scores.itc, scores.itm, strict=True)
        ]


def _as_list(texts: str | list[str]) -> list[str]:
    """Return several texts of one row as they are, a single one as a list."""
    return [texts] if isinstance(texts, str) else texts
