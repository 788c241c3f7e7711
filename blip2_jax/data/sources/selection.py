"""Base of sources that select records of another source."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.data.sources.base import Source
from blip2_jax.data.sources.content_digest import Digests
from blip2_jax.data.sources.registry import build_source


class SelectionSource(Source):
    """Records of another source, whose images stay where they are.

    Args:
      of: spec of the other source.
    """

    def __init__(self, of: Mapping[str, Any]):
        self._of = build_source(of)
        self.image_kind = self._of.image_kind
        self.feature_origin = self._of.feature_origin
        self.left_out = dict(self._of.left_out)

    @abc.abstractmethod
    def _index(self, index: int) -> int:
        """Return the index in the other source."""

    def content(self) -> Digests:
        """Return the digests of the other source; see `Source`."""
        return self._of.content()

    def check_image(self, index: int) -> None:
        """Check that the image is there; see `Source`."""
        self._of.check_image(self._index(index))

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the image of a record; see `Source`."""
        return self._of.load_image(self._index(index), at_least)

    def encoded_image(self, index: int) -> bytes | None:
        """Read the image of a record; see `Source`."""
        return self._of.encoded_image(self._index(index))

    def load_features(self, index: int, crop: int = 0) -> Float[Array, "P D"]:
        """Load the features of a record; see `Source`."""
        return self._of.load_features(self._index(index), crop)
