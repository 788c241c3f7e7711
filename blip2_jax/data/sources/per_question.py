"""Another source with a record for each of its questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.data.sources.base import BrokenSample, Record, Source
from blip2_jax.data.sources.registry import build_source


class PerQuestion(Source):
    """One record a question: an epoch shows every question once.

    Sources of questions have a record an image, of whose questions a step shows one: an
    epoch sees every image once, and questions of images that have many are seen less
    often. Here all count the same, as in the original's fine-tunes. Captions are left
    out.

    Args:
      of: the spec of a source with questions.

    Raises:
      ValueError: it has none.
    """

    def __init__(self, of: Mapping[str, Any]):
        self._of = build_source(of)
        self.name = f"each question of {self._of.name}"
        self.image_kind = self._of.image_kind
        self._places = [
            (index, place)
            for index in range(len(self._of))
            for place in range(self._questions(index))
        ]
        if not self._places:
            raise ValueError(f"{self._of.name} has no questions")

    def _questions(self, index: int) -> int:
        try:
            return len(self._of.record(index).questions)
        except BrokenSample:
            return 0

    def __len__(self) -> int:
        return len(self._places)

    @property
    def num_images(self) -> int:
        return self._of.num_images

    def record(self, index: int) -> Record:
        place, number = self._places[index]
        record = self._of.record(place)
        asked = (record.questions[number],)
        return dataclasses.replace(record, captions=(), questions=asked)

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        return self._of.load_image(self._places[index][0], at_least)

    def load_features(self, index: int) -> Float[Array, "P D"]:
        return self._of.load_features(self._places[index][0])
