"""Precomputed features of a frozen image encoder, joined with texts by key.

A directory holds `features.npy` [N, P, D] and `keys.json`, N strings: the keys of
the source of the texts (for tars, SHARD/KEY).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from blip2_jax.data.sources.base import BrokenSample, ImageKind, Record, Source
from blip2_jax.data.sources.registry import build_source


class FeaturesSource(Source):
    """Rows of a feature array with the captions or questions of another source.

    Args:
      path: the directory.
      texts: spec of the source of the texts; None: records have no text.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: keys and features do not fit each other, or no key has a text.
    """

    image_kind = ImageKind.FEATURES

    def __init__(self, path: str, texts: Mapping[str, Any] | None = None):
        self.name = f"features:{path}"
        self._path = pathlib.Path(path)
        self._array: Array | None = None
        for name in ("features.npy", "keys.json"):
            if not (self._path / name).is_file():
                raise FileNotFoundError(f"there is no {self._path / name}")
        self._keys: list[str] = json.loads((self._path / "keys.json").read_text())
        if len(self._keys) != len(self._features()):
            raise ValueError(
                f"{path}: {len(self._keys)} keys for {len(self._features())} features"
            )
        self._texts = None if texts is None else build_source(texts)
        self._rows = [] if self._texts is None else self._join(self._texts)

    def _join(self, texts: Source) -> list[int | None]:
        """For every feature row the record of its texts, None where there is none."""
        known = {key: index for index, key in enumerate(texts.keys())}
        rows = [known.get(key) for key in self._keys]
        if not any(row is not None for row in rows):
            raise ValueError(
                f"no key of {self.name} ({self._keys[0]!r}, ...) is in {texts.name} "
                f"({next(iter(known), None)!r}, ...)"
            )
        return rows

    def __len__(self) -> int:
        return len(self._keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}  # workers map the file themselves

    @property
    def num_images(self) -> int:
        return len(self) if self._texts is None else self._texts.num_images

    def keys(self) -> list[str]:
        return list(self._keys)

    def record(self, index: int) -> Record:
        if self._texts is None:
            return Record(self._keys[index], index)
        row = self._rows[index]
        if row is None:
            raise BrokenSample("no text for features", self._keys[index])
        return self._texts.record(row)

    def load_features(self, index: int) -> Float[Array, "P D"]:
        features = np.array(self._features()[index])
        if not np.isfinite(features).all():
            raise BrokenSample("non-finite features", self._keys[index])
        return features

    def _features(self) -> Float[Array, "images P D"]:
        if self._array is None:
            self._array = np.load(self._path / "features.npy", mmap_mode="r")
            if self._array.ndim != 3:
                raise ValueError(f"{self.name}: shape {self._array.shape}, not N P D")
        return self._array
