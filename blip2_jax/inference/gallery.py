"""Galleries: the images that a search index covers, by name."""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxtyping import Shaped
from numpy import ndarray as Array

from blip2_jax.data.prefetch import map_ahead
from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.features import FeaturesSource
from blip2_jax.data.sources.files import ImageFiles
from blip2_jax.data.sources.reading import broken_on_error, read_features
from blip2_jax.inference.image_batches import model_pixels
from blip2_jax.inference.image_sets import folder_images
from blip2_jax.models.sizes import FeaturesConfig, ViTConfig
from blip2_jax.parallel.paths import as_path, file_state, is_remote
from blip2_jax.parallel.worker_places import available_cores

_AHEAD = 96  # images that are decoded before the model takes them


class Loaded(NamedTuple):
    """An image as the model takes it, or what is wrong with it.

    Attributes:
      name: its name.
      row: pixels [R, R, 3], or features [P, D]; None: broken.
      broken: cause; "": it can be read.
    """

    name: str
    row: Shaped[Array, "..."] | None
    broken: str = ""


class Gallery(abc.ABC):
    """Images by name, each with a stamp that changes when its file does.

    Attributes:
      folder: where they are.
      keyword: name of the argument that passes them to a model.
    """

    folder: str
    keyword: str

    @abc.abstractmethod
    def stamps(self) -> dict[str, str]:
        """Return the names of all images in order, each with its stamp."""

    @abc.abstractmethod
    def read(self, name: str) -> Shaped[Array, "..."]:
        """Return an image as the model takes it.

        Raises:
          BrokenSample: it cannot be read.
        """

    def load(self, names: Sequence[str]) -> Iterator[Loaded]:
        """Yield images in order, read ahead by threads."""

        def load_one(name: str) -> Loaded:
            try:
                return Loaded(name, self.read(name))
            except BrokenSample as error:
                return Loaded(name, None, error.cause)

        threads = len(available_cores())
        return map_ahead(load_one, names, ahead=_AHEAD, threads=threads)


class ImageGallery(Gallery):
    """The image files of a folder and its sub-folders.

    Args:
      folder: the folder; names are relative to it.
      size: side of the images that the model takes, in pixels.

    Raises:
      FileNotFoundError: there is no such folder.
    """

    keyword = "images"

    def __init__(self, folder: str, size: int):
        self.folder = folder if is_remote(folder) else os.path.abspath(folder)
        self._files, self._size = ImageFiles(self.folder), size

    def stamps(self) -> dict[str, str]:
        """Return names and stamps (size and time); see `Gallery`."""
        return {
            name: "{}-{}".format(*file_state(self._files.path(name)))
            for name in folder_images(as_path(self.folder))
        }

    def read(self, name: str) -> Shaped[Array, "..."]:
        """Decode and resize an image; see `Gallery`."""
        with broken_on_error("unreadable image", name):
            return model_pixels(self._files.read(name), name, self._size)


class FeatureGallery(Gallery):
    """The images whose features a folder holds, named by their keys.

    Args:
      folder: that `blip2-jax features` wrote.
      vision: sizes of the features that the model takes.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or the features have other sizes.
    """

    keyword = "features"

    def __init__(self, folder: str, vision: FeaturesConfig):
        self.folder = folder if is_remote(folder) else os.path.abspath(folder)
        self._source = FeaturesSource(self.folder)
        shape = self._source.load_features(0).shape
        if shape != (vision.num_tokens, vision.width):
            raise ValueError(
                f"{folder} holds features of {shape[0]} x {shape[1]} an image; the "
                f"model takes {vision.num_tokens} x {vision.width}"
            )
        self._rows = {key: row for row, key in enumerate(self._source.iterate_keys())}

    def stamps(self) -> dict[str, str]:
        """Return keys and the stamp of the file; see `Gallery`."""
        stamp = "{}-{}".format(*file_state(as_path(self.folder) / "features.npy"))
        return dict.fromkeys(self._rows, stamp)

    def read(self, name: str) -> Shaped[Array, "..."]:
        """Return the features of an image; see `Gallery`."""
        if name not in self._rows:
            raise BrokenSample("missing features", name)
        return read_features(self._source, self._rows[name], name)


def open_gallery(folder: str, vision: ViTConfig | FeaturesConfig) -> Gallery:
    """Open the images of a folder as a model takes them.

    Args:
      folder: images, or, for a model that was trained on features, the folder that
        `blip2-jax features` wrote.
      vision: configuration of the model's image encoder.

    Raises:
      FileNotFoundError, ValueError: see `ImageGallery` and `FeatureGallery`.
    """
    if isinstance(vision, FeaturesConfig):
        return FeatureGallery(folder, vision)
    return ImageGallery(folder, vision.image_size)
