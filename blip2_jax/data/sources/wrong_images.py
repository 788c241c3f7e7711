"""Another source whose pictures are not the right ones: what texts alone tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.data.sources.base import Record, Source
from blip2_jax.data.sources.registry import build_source


class WrongImages(Source):
    """The records of a source with other pictures, or features, than theirs.

    A model that answers as well then has not looked.

    Args:
      of: the spec of a source with a record an image.
      pictures: "shuffled": those of the record half of the source away, or "blank":
        zeros, which are black pixels, or features of which a model's first
        normalisation leaves its bias.

    Raises:
      ValueError: other pictures than these, or too few to shuffle.
    """

    def __init__(
        self, of: Mapping[str, Any], pictures: Literal["blank", "shuffled"] = "shuffled"
    ):
        if pictures not in ("blank", "shuffled"):
            raise ValueError(f"pictures is blank or shuffled, not {pictures!r}")
        self._of = build_source(of)
        if pictures == "shuffled" and len(self._of) < 2:
            raise ValueError(f"{self._of.name} has one picture: none to show instead")
        self.name = f"{pictures} pictures of {self._of.name}"
        self.image_kind = self._of.image_kind
        self.group_size = self._of.group_size
        self._blank = pictures == "blank"

    def __len__(self) -> int:
        return len(self._of)

    @property
    def num_images(self) -> int:
        return self._of.num_images

    def keys(self) -> list[str]:
        return self._of.keys()

    def record(self, index: int) -> Record:
        return self._of.record(index)

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        return self._shown(self._of.load_image(self._place(index), at_least))

    def load_features(self, index: int) -> Float[Array, "P D"]:
        return self._shown(self._of.load_features(self._place(index)))

    def _place(self, index: int) -> int:
        return index if self._blank else (index + len(self) // 2) % len(self)

    def _shown(self, array: Array) -> Array:
        return np.zeros_like(array) if self._blank else array
