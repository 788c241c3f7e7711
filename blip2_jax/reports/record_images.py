"""The images of evaluated records, found by the records' keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.sources.base import BrokenSample, Source
from blip2_jax.data.sources.reading import read_pixels
from blip2_jax.data.sources.registry import build_source


class RecordImages:
    """The images of evaluated data by the keys of their records."""

    def __init__(self, specs: Sequence[Mapping[str, Any]]):
        """Open the sources.

        Args:
          specs: of the evaluated data; if it consists of features, the images are those
            of the source of its texts.

        Raises:
          FileNotFoundError: a source is missing.
          ValueError: a spec is wrong.
        """
        self._locations: dict[str, tuple[Source, int]] = {}
        for spec in specs:
            source = build_source(_with_pixels(spec))
            self._locations |= {key: (source, i) for i, key in enumerate(source.keys())}

    def find(self, key: str) -> UInt8[Array, "height width 3"] | None:
        """Return RGB pixels; None if there is no such image or it cannot be read."""
        if key not in self._locations:
            return None
        source, index = self._locations[key]
        try:
            return read_pixels(source, index, key)
        except BrokenSample:
            return None


def _with_pixels(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Replace sources of features in a spec by the sources of their texts."""
    if isinstance(spec.get("texts"), Mapping):
        return _with_pixels(spec["texts"])
    return {
        name: _with_pixels(value)
        if isinstance(value, Mapping) and "kind" in value
        else value
        for name, value in spec.items()
    }
