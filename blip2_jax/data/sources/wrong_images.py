"""A source with wrong images, to measure what a model answers without looking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.data.sources.base import Record, Source
from blip2_jax.data.sources.content_digest import Digests
from blip2_jax.data.sources.registry import build_source


class WrongImages(Source):
    """The records of a source with wrong images or features.

    A model whose scores stay the same does not use the images.

    Args:
      of: spec of a source with one record per image.
      pictures: "shuffled" takes the image of the record half the source away; "blank"
        takes zeros: black pixels, or features that the model's first norm maps to its
        bias.

    Raises:
      ValueError: `pictures` is unknown, or there are too few images to shuffle.
    """

    def __init__(
        self, of: Mapping[str, Any], pictures: Literal["blank", "shuffled"] = "shuffled"
    ):
        if pictures not in ("blank", "shuffled"):
            raise ValueError(f"pictures must be blank or shuffled, not {pictures!r}")
        self._of = build_source(of)
        if pictures == "shuffled" and len(self._of) < 2:
            raise ValueError(f"{self._of.name} has too few images to shuffle")
        self.name = f"{pictures} pictures of {self._of.name}"
        self.image_kind = self._of.image_kind
        self.feature_origin = self._of.feature_origin
        self.group_size = self._of.group_size
        self.left_out = dict(self._of.left_out)
        self._blank = pictures == "blank"

    def __len__(self) -> int:
        return len(self._of)

    @property
    def num_images(self) -> int:
        """Number of images; see `Source`."""
        return self._of.num_images

    def iterate_keys(self) -> Iterator[str]:
        """Yield the keys of all records."""
        return self._of.iterate_keys()

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        return self._of.record(index)

    def content(self) -> Digests:
        """Return the digests of the other source; see `Source`."""
        return self._of.content()

    def check_image(self, index: int) -> None:
        """Check that the image that is shown is there; see `Source`."""
        self._of.check_image(self._image_index(index))

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the image of a record; see `Source`."""
        return self._blanked(self._of.load_image(self._image_index(index), at_least))

    def encoded_image(self, index: int) -> bytes | None:
        """Read the image that is shown; see `Source`. Blank images are not kept."""
        return None if self._blank else self._of.encoded_image(self._image_index(index))

    def load_features(self, index: int, crop: int = 0) -> Float[Array, "P D"]:
        """Load the features of a record; see `Source`."""
        return self._blanked(self._of.load_features(self._image_index(index), crop))

    def _image_index(self, index: int) -> int:
        """Return the index of the record whose image is shown."""
        return index if self._blank else (index + len(self) // 2) % len(self)

    def _blanked(self, array: Array) -> Array:
        """Return zeros instead of an image if images are blank."""
        return np.zeros_like(array) if self._blank else array
