"""A part of another source: the images to train on, or those that are held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64
from numpy import ndarray as Array

from blip2_jax.data.sources.base import BrokenSample, Record
from blip2_jax.data.sources.bit_selection import BitSelection
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
    ) -> tuple[BitSelection, Int64[Array, " images"] | None]:
        """Select the part's records and images; None if each record is an image."""
        count = self._of.num_images
        order = np.random.default_rng(seed).permutation(count)
        in_part = np.full(count, part == "train")
        in_part[order[: max(1, round(share * count))]] = part == "held_out"
        if self._one_image_each():
            return BitSelection(in_part), None
        images = map(self._image_of, range(len(self._of)))
        image_of = np.fromiter(images, np.int64, len(self._of))
        selected = in_part[image_of]
        return BitSelection(selected), np.unique(image_of[selected])

    def _one_image_each(self) -> bool:
        """Return True if no two records share an image."""
        return self._of.num_images == len(self._of)

    def _image_of(self, index: int) -> int:
        """Return the image id of a record; a broken record stays in one part."""
        if self._one_image_each():
            return index
        try:
            return read_record(self._of, index).image_id
        except BrokenSample:
            return index % self._of.num_images

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def num_images(self) -> int:
        """Number of images; see `Source`."""
        return len(self) if self._images is None else len(self._images)

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        original = self._indices[index]
        record = read_record(self._of, original)
        image = index
        if self._images is not None:
            image = int(np.searchsorted(self._images, self._image_of(original)))
        return dataclasses.replace(record, image_id=image)

    def _index(self, index: int) -> int:
        return self._indices[index]
