"""A source with one record per question of another source."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.data.sources.base import BrokenSample, Record, Source
from blip2_jax.data.sources.content_digest import Digests
from blip2_jax.data.sources.features import NO_TEXT
from blip2_jax.data.sources.reading import read_record
from blip2_jax.data.sources.registry import build_source


class PerQuestion(Source):
    """One record per question, so that an epoch shows every question once.

    Other sources have one record per image, and a step shows one of its questions:
    questions of images with many questions are seen less often. Here all questions
    count the same, as in the original's fine-tuning. Captions are dropped.

    Args:
      of: spec of a source with questions.

    Raises:
      ValueError: the source has no questions.
    """

    def __init__(self, of: Mapping[str, Any]):
        self._of = build_source(of)
        self.name = f"each question of {self._of.name}"
        self.image_kind = self._of.image_kind
        self.left_out = dict(self._of.left_out)
        # (record, number of the question) of every question
        self._indices = [
            (index, number)
            for index in range(len(self._of))
            for number in range(self._count_questions(index))
        ]
        if not self._indices:
            raise ValueError(f"{self._of.name} has no questions")

    def _count_questions(self, index: int) -> int:
        """Count the questions of a record; a broken record stays one element."""
        try:
            return len(read_record(self._of, index).questions)
        except BrokenSample as error:
            return 0 if error.cause == NO_TEXT else 1

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def num_images(self) -> int:
        """Number of images; see `Source`."""
        return self._of.num_images

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        record_index, number = self._indices[index]
        record = read_record(self._of, record_index)
        questions = (record.questions[number],)
        return dataclasses.replace(record, captions=(), questions=questions)

    def content(self) -> Digests:
        """Return the digests of the other source; see `Source`."""
        return self._of.content()

    def check_image(self, index: int) -> None:
        """Check that the image is there; see `Source`."""
        self._of.check_image(self._indices[index][0])

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the image of a record; see `Source`."""
        return self._of.load_image(self._indices[index][0], at_least)

    def load_features(self, index: int) -> Float[Array, "P D"]:
        """Load the features of a record; see `Source`."""
        return self._of.load_features(self._indices[index][0])
