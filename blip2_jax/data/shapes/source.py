"""The shapes world as a data source: images with captions or questions, or text."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import UInt8

from blip2_jax.data.shapes.captions import captions, description
from blip2_jax.data.shapes.questions import questions
from blip2_jax.data.shapes.render import render
from blip2_jax.data.shapes.world import MAX_THINGS, get_split, scene
from blip2_jax.data.sources.base import ImageKind, Question, Record, Source
from blip2_jax.data.sources.content_digest import Digests


class ShapesSource(Source):
    """Scenes of one split; near-duplicates are neighbours (`group_size`).

    Args:
      split: "train", "validation" (new scenes of known things) or "heldout".
      size: number of scenes; a multiple of the split's group size.
      texts: "captions", "questions" or "both".
      images: False leaves out the images (pre-training of language models) and adds a
        description to each record.
      start: first scene; a multiple of the split's group size.
      things: number of things per scene; 0: one to four in turn.
      count: number of captions, and of questions, per scene.

    Raises:
      ValueError: the split or kind of texts is unknown, or a group would be split.
    """

    def __init__(
        self,
        split: str,
        size: int,
        texts: Literal["captions", "questions", "both"] = "captions",
        images: bool = True,
        start: int = 0,
        things: int = 0,
        count: int = 5,
    ):
        self.group_size = get_split(split).group
        if texts not in ("captions", "questions", "both"):
            raise ValueError(
                f"texts must be captions, questions or both, not {texts!r}"
            )
        if start % self.group_size or size % self.group_size:
            raise ValueError(
                f"start {start} and size {size} must be multiples of "
                f"{self.group_size}, the group size of split {split!r}"
            )
        if things not in range(MAX_THINGS + 1):
            raise ValueError(f"things must be 0 to {MAX_THINGS}, not {things}")
        self.name = f"shapes:{split}"
        self.image_kind = ImageKind.PIXELS if images else ImageKind.NONE
        self._split, self._size, self._texts = split, size, texts
        self._start, self._things, self._count = start, things, count

    def __len__(self) -> int:
        return self._size

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        number = self._number(index)
        scene_questions, scene_captions = [], []
        if self._texts != "captions":
            scene_questions = questions(self._split, number, self._count)
        if self._texts != "questions":
            scene_captions = captions(self._split, number, self._count)
        has_image = self.image_kind is ImageKind.PIXELS
        return Record(
            key=f"{self._split}/{number}",
            image_id=index,
            captions=tuple(scene_captions),
            questions=tuple(
                Question(q.text, (q.answer,), f"{number}/{q.kind}/{position}")
                for position, q in enumerate(scene_questions)
            ),
            original_id=number,
            description="" if has_image else description(self._split, number),
        )

    def content(self) -> Digests:
        """Return nothing: name and size determine the scenes."""
        return {}

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Load the image of a record; see `Source`."""
        return render(scene(self._split, self._number(index)))

    def _number(self, index: int) -> int:
        """Return a scene's number in its split: every fourth group has `things`."""
        number = self._start + index
        if not self._things:
            return number
        group, member = divmod(number, self.group_size)
        group = group * MAX_THINGS + self._things - 1
        return group * self.group_size + member
