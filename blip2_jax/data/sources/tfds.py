"""TensorFlow Datasets in ArrayRecord files, read without TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.images import decode_image
from blip2_jax.data.sources.base import BrokenSample, Record, Source


class TfdsSource(Source):
    """A prepared data set; nothing is downloaded.

    Args:
      name: name of the data set ("coco_captions"), or the directory of a version of
        it, the one that holds `dataset_info.json`.
      split: "train", "train+restval", "val[:100]", ...
      data_dir: where data sets are kept; TFDS' default otherwise.
      image, captions, image_id: paths of the features, parts joined by ">"; the
        captions are one text or several. "" for an image_id that is not there.

    Raises:
      FileNotFoundError: the data set is not prepared there.
      ValueError: not in ArrayRecord files, or a feature is not there.
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
        features = self._data.dataset_info.features
        for path in (self._open[3], self._captions, self._image_id):
            present: Any = features
            for part in path.split(">") if path else ():
                present = getattr(present, "feature", present)  # inside a sequence
                if part not in present:
                    raise ValueError(
                        f"{self.name} has no feature {path!r}: {features!r}"
                    )
                present = present[part]

    def __len__(self) -> int:
        return len(self._data)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}  # open files do not pickle

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._data = _open(*self._open)

    def record(self, index: int) -> Record:
        example = self._example(index)
        captions = _feature(example, self._captions)
        captions = np.atleast_1d(np.asarray(captions, object))
        original = None
        if self._image_id:
            original = _plain(_feature(example, self._image_id))
        key = f"{index}" if original is None else f"{original}"
        texts = tuple(_plain(caption) for caption in captions)
        return Record(key, index, texts, original_id=original)

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        data = _feature(self._example(index), self._open[3])
        return decode_image(data, f"{self.name}/{index}", at_least)

    def _example(self, index: int) -> dict[str, Any]:
        try:
            return self._data[index]
        except Exception as error:  # whatever a damaged record makes TFDS raise
            key = f"{self.name}/{index}"
            raise BrokenSample("unreadable record", key, str(error)) from None


def _open(name: str, split: str, data_dir: str, image: str) -> Any:
    import tensorflow_datasets as tfds  # takes seconds
    from tensorflow_datasets.core import dataset_info, read_only_builder

    try:
        if "/" in name:
            builder = tfds.builder_from_directory(name)
        else:  # from its files alone: the code that prepares it wants TensorFlow
            where = data_dir or tfds.core.constants.DATA_DIR
            builder = read_only_builder.builder_from_files(name, data_dir=where)
    except tfds.core.registered.DatasetNotFoundError:
        raise FileNotFoundError(f"no prepared data set {name!r} in {where}") from None
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
    value: Any = example
    for part in path.split(">"):
        value = value[part]
    return value


def _plain(value: Any) -> Any:
    """A str of bytes, an int of a numpy number."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return value.item() if isinstance(value, np.generic) else value
