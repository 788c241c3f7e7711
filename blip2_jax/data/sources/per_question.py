"""A source with one record per question of another source."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from blip2_jax.data.sources.base import BrokenSample, Record
from blip2_jax.data.sources.features import NO_TEXT
from blip2_jax.data.sources.reading import read_record
from blip2_jax.data.sources.selection import SelectionSource


class PerQuestion(SelectionSource):
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
        super().__init__(of)
        self.name = f"each question of {self._of.name}"
        # (record, number of the question) of every question
        counts = [self._count_questions(index) for index in range(len(self._of))]
        self._indices = np.array(
            [(i, number) for i, count in enumerate(counts) for number in range(count)],
            np.int32,
        )
        if not len(self._indices):
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
        record_index, number = self._indices[index].tolist()
        record = read_record(self._of, record_index)
        questions = (record.questions[number],)
        return dataclasses.replace(record, captions=(), questions=questions)

    def _index(self, index: int) -> int:
        return int(self._indices[index, 0])
