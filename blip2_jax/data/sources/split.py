"""A part of another source: the images to train on, or those that are held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from blip2_jax.data.sources.base import BrokenSample, Record
from blip2_jax.data.sources.reading import read_record
from blip2_jax.data.sources.selection import SelectionSource


class SplitSource(SelectionSource):
    """The records of some images of a source, drawn at random once.

    All records of an image are in the same part. The parts "train" and "held_out" of
    equal arguments have no image in common and together are the whole source.

    Args:
      of: spec of the source.
      part: the part to take.
      share: share of the images that are held out, at least one image.
      seed: seed of the draw.

    Raises:
      ValueError: an argument is invalid, or the source has fewer than two images or
        groups of near-duplicates.
    """

    def __init__(
        self,
        of: Mapping[str, Any],
        part: Literal["train", "held_out"],
        share: float = 0.1,
        seed: int = 0,
    ):
        if part not in ("train", "held_out"):
            raise ValueError(f"part must be train or held_out, not {part!r}")
        if not 0 < share < 1:
            raise ValueError(f"share must be between 0 and 1, not {share}")
        super().__init__(of)
        if self._of.num_images < 2:
            raise ValueError(f"{self._of.name} has one image, which cannot be split")
        if self._of.group_size > 1:
            raise ValueError(
                f"{self._of.name} has groups of {self._of.group_size} near-duplicates, "
                "which a random split would separate"
            )
        self.name = f"{part} part of {self._of.name}"
        self._indices, self._images = self._select(part, share, seed)

    def _select(
        self, part: str, share: float, seed: int
    ) -> tuple[list[int], dict[int, int]]:
        """Return indices of the part's records, and new image ids by former ones."""
        count = self._of.num_images
        order = np.random.default_rng(seed).permutation(count)
        held_out = set(order[: max(1, round(share * count))].tolist())
        image_of = [self._image_of(index) for index in range(len(self._of))]
        indices = [
            index
            for index, image in enumerate(image_of)
            if (image in held_out) == (part == "held_out")
        ]
        images = sorted({image_of[index] for index in indices})
        return indices, {image: number for number, image in enumerate(images)}

    def _image_of(self, index: int) -> int:
        """Return the image id of a record; a broken record stays in one part."""
        if self._of.num_images == len(self._of):
            return index  # no two records share an image
        try:
            return read_record(self._of, index).image_id
        except BrokenSample:
            return index % self._of.num_images

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def num_images(self) -> int:
        """Number of images; see `Source`."""
        return len(self._images)

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        index = self._indices[index]
        record = read_record(self._of, index)
        return dataclasses.replace(record, image_id=self._images[self._image_of(index)])

    def _index(self, index: int) -> int:
        return self._indices[index]
