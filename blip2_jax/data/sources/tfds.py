"""TensorFlow Datasets in ArrayRecord files, read without TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.images import decode_image
from blip2_jax.data.sources.base import BrokenSample, Record, Source
from blip2_jax.data.sources.content_digest import (
    MAX_READ,
    Digests,
    evenly_spaced,
    hash_parts,
)


class TfdsSource(Source):
    """A data set that TFDS has already prepared; nothing is downloaded.

    Args:
      name: name of the data set ("coco_captions"), or the directory of one version,
        which holds `dataset_info.json`.
      split: "train", "train+restval", "val[:100]", ...
      data_dir: directory of prepared data sets; "": TFDS' default.
      image: path of the image feature; names are joined by ">".
      captions: path of the captions, one text or several.
      image_id: path of the image id; "" if there is none.

    Raises:
      FileNotFoundError: the data set is not prepared.
      ValueError: the files are not ArrayRecord, or a feature is missing.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: str = "",
        image: str = "image",
        captions: str = "captions>text",
        image_id: str = "image/id",
    ):
        self.name = f"tfds:{name}[{split}]"
        self._open = (name, split, data_dir, image)
        self._captions, self._image_id = captions, image_id
        self._data: Any = _open(*self._open)
        self._check_features()

    def _check_features(self) -> None:
        """Check that the data set has the features."""
        features = self._data.dataset_info.features
        for path in (self._open[3], self._captions, self._image_id):
            node: Any = features
            for part in path.split(">") if path else ():
                node = getattr(node, "feature", node)  # the element of a sequence
                if part not in node:
                    raise ValueError(
                        f"{self.name} has no feature {path!r}: {features!r}"
                    )
                node = node[part]

    def __len__(self) -> int:
        return len(self._data)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}  # open files do not pickle

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._data = _open(*self._open)

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        example = self._example(index)
        captions = _feature(example, self._captions)
        captions = np.atleast_1d(np.asarray(captions, object))
        image_id = None
        if self._image_id:
            image_id = _plain(_feature(example, self._image_id))
        key = str(index if image_id is None else image_id)
        texts = tuple(_plain(caption) for caption in captions)
        return Record(key, index, texts, original_id=image_id)

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the image of a record; see `Source`."""
        data = self.encoded_image(index)
        return decode_image(data, f"{self.name}/{index}", at_least)

    def encoded_image(self, index: int) -> bytes:
        """Read the image of a record; see `Source`."""
        data: bytes = _feature(self._example(index), self._open[3])
        return data

    def content(self) -> Digests:
        """Return a digest of a sample of the examples; see `Source`."""
        parts = []
        for index in evenly_spaced(len(self), MAX_READ):
            try:
                example = self._example(index)
            except BrokenSample:
                example = {}
            for path in (self._open[3], self._captions) if example else ():
                value = np.atleast_1d(np.asarray(_feature(example, path), object))
                parts += [str(_plain(item)).encode() for item in value]
        return {"examples (sample)": hash_parts(parts)}

    def _example(self, index: int) -> dict[str, Any]:
        """Read an example; its image is not decoded."""
        try:
            return self._data[index]
        except Exception as error:  # TFDS raises anything for a damaged record
            key = f"{self.name}/{index}"
            raise BrokenSample("unreadable record", key, str(error)) from None


def _open(name: str, split: str, data_dir: str, image: str) -> Any:
    """Open a split as a random-access data source with encoded images."""
    import tensorflow_datasets as tfds  # takes seconds
    from tensorflow_datasets.core import dataset_info, read_only_builder

    try:
        if "/" in name:
            builder = tfds.builder_from_directory(name)
        else:  # from files, because the data set's own builder imports TensorFlow
            root = data_dir or tfds.core.constants.DATA_DIR
            builder = read_only_builder.builder_from_files(name, data_dir=root)
    except tfds.core.registered.DatasetNotFoundError:
        raise FileNotFoundError(f"no prepared data set {name!r} in {root}") from None
    except dataset_info.DatasetInfoFileError:
        raise FileNotFoundError(f"no dataset_info.json in {name!r}") from None
    decoders: Any = tfds.decode.SkipDecoding()
    for part in reversed(image.split(">")):
        decoders = {part: decoders}
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:
        raise ValueError(f"{name!r} is not in ArrayRecord files: {error}") from None


def _feature(example: dict[str, Any], path: str) -> Any:
    """Return the value at a feature path."""
    value: Any = example
    for part in path.split(">"):
        value = value[part]
    return value


def _plain(value: Any) -> Any:
    """Convert bytes to str and numpy scalars to Python numbers."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value.item() if isinstance(value, np.generic) else value
