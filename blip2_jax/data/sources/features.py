"""Precomputed features of a frozen image encoder, joined with texts by key.

A directory holds `features.npy` [images, P, D] and `keys.json`, the images'
keys in the source of the texts (SHARD/KEY for tars).
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from numpy import ndarray as Array

from blip2_jax.data.sources.base import BrokenSample, ImageKind, Record, Source
from blip2_jax.data.sources.checked_rows import take_texts
from blip2_jax.data.sources.content_digest import (
    MAX_READ,
    Digests,
    evenly_spaced,
    hash_parts,
)
from blip2_jax.data.sources.registry import build_source
from blip2_jax.parallel.files import read_array, read_json
from blip2_jax.parallel.paths import as_path, file_state

NO_TEXT = "no text for features"  # cause of broken samples
NO_ROW = -1  # features without a text


class FeaturesSource(Source):
    """Rows of a feature array with the captions or questions of another source.

    Args:
      path: the directory.
      texts: spec of the source of the texts; None: records have no text.

    Raises:
      FileNotFoundError: a file does not exist.
      ValueError: a file is damaged, the numbers of keys and features differ, or no key
        has a text.
    """

    image_kind = ImageKind.FEATURES

    def __init__(self, path: str, texts: Mapping[str, Any] | None = None):
        self.name = f"features:{path}"
        self._path = as_path(path)
        self._array: Array | None = None
        for name in ("features.npy", "keys.json"):
            if not (self._path / name).is_file():
                raise FileNotFoundError(f"{self._path / name} does not exist")
        self._keys = _read_keys(self._path / "keys.json")
        if len(self._keys) != len(self._features()):
            raise ValueError(
                f"{path}: {len(self._keys)} keys for {len(self._features())} features"
            )
        self._texts = None if texts is None else build_source(texts)
        self._rows = np.zeros(0, np.int64)
        if self._texts is not None:
            self._rows, self.left_out = join_texts(self.name, self._keys, self._texts)

    def __len__(self) -> int:
        return len(self._keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}  # each worker maps the file

    @property
    def num_images(self) -> int:
        """Number of images; see `Source`."""
        return len(self) if self._texts is None else self._texts.num_images

    def iterate_keys(self) -> Iterator[str]:
        """Yield the keys of all records."""
        return iter(self._keys)

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        if self._texts is None:
            return Record(self._keys[index], index)
        row = int(self._rows[index])
        if row == NO_ROW:
            raise BrokenSample(NO_TEXT, self._keys[index])
        return self._texts.record(row)

    def content(self) -> Digests:
        """Return digests of keys, texts, and a sample of the features."""
        array, file = self._features(), self._path / "features.npy"
        sample = [array[i].tobytes() for i in evenly_spaced(len(array), MAX_READ)]
        shape = f"{array.shape} {array.dtype.str}".encode()
        texts = {} if self._texts is None else self._texts.content()
        return {
            "keys and their order": hash_parts(key.encode() for key in self._keys),
            "features (sample)": hash_parts([shape, *sample]),
            "feature file times": hash_parts([file_state(file)[1].encode()]),
            # The features replace image files, which may be gone.
            **{k: v for k, v in texts.items() if not k.startswith("image ")},
        }

    def load_features(self, index: int, crop: int = 0) -> Float[Array, "P D"]:
        """Load the features of a record; see `Source`."""
        del crop  # there is one
        features = np.array(self._features()[index])
        if not np.isfinite(features).all():
            raise BrokenSample("non-finite features", self._keys[index])
        return features

    def _features(self) -> Float[Array, "images P D"]:
        if self._array is None:
            self._array = read_array(self._path / "features.npy", "r")
            if self._array.ndim != 3:
                raise ValueError(
                    f"{self.name} has shape {self._array.shape}, not [images, P, D]"
                )
        return self._array


def join_texts(
    name: str, keys: Sequence[str], texts: Source
) -> tuple[Int64[Array, " images"], dict[str, int]]:
    """Find the record of texts of each image by its key.

    Args:
      name: of the source of the images, for errors.
      keys: of the images; "" for broken ones.
      texts: source of the texts.

    Returns:
      Indices in `texts`, `NO_ROW` for images without texts; and what is left out of
      `texts`, by reason.

    Raises:
      ValueError: no image has a text.
    """
    wanted = set(keys)
    # There may be far more texts than images.
    indices = {
        key: index for index, key in enumerate(texts.iterate_keys()) if key in wanted
    }
    if not indices:
        raise ValueError(
            f"no key of {name} ({keys[0]!r}, ...) is in {texts.name} "
            f"({next(texts.iterate_keys(), None)!r}, ...)"
        )
    rows = np.array([indices.get(key, NO_ROW) for key in keys], np.int64)
    left_out = dict(texts.left_out)
    if without := len(texts) - len(np.unique(rows[rows != NO_ROW])):
        left_out["records without features"] = without
    return rows, left_out


def _read_keys(path: pathlib.Path) -> list[str]:
    """Read the list of keys, which must be texts."""
    keys = read_json(path)
    if not isinstance(keys, list):
        raise ValueError(f"{path} holds no list of keys")
    try:
        return list(take_texts(keys, "keys"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
