"""Image files under a root directory, wherever annotations say they once lay."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.images import decode_image
from blip2_jax.data.sources.base import BrokenSample


class ImageFiles:
    """Images by the name that an annotation gives them.

    Args:
      root: the directory of relative names.
      remap: prefixes of names and what stands for them, the first that matches:
        `{"/export/share/vg/": "vg/"}` for annotations with someone's absolute paths.

    Raises:
      FileNotFoundError: the root is no directory.
    """

    def __init__(self, root: str, remap: Mapping[str, str] | None = None):
        self._root = pathlib.Path(root)
        self._remap = dict((remap or {}).items())
        if not self._root.is_dir():
            raise FileNotFoundError(f"image directory {root!r} does not exist")

    def path(self, name: str) -> pathlib.Path:
        """Where the file should be. An absolute name that no prefix maps stays."""
        for prefix, replacement in self._remap.items():
            if name.startswith(prefix):
                name = replacement + name.removeprefix(prefix)
                break
        return self._root / name

    def load(self, name: str, at_least: int = 0) -> UInt8[Array, "height width 3"]:
        """Decode an image. Raises BrokenSample ("missing image", ...)."""
        path = self.path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise BrokenSample("missing image", name, str(path)) from None
        except OSError as error:
            raise BrokenSample("unreadable image", name, str(error)) from None
        return decode_image(data, name, at_least)


def read_text_file(path: str) -> str:
    """An annotation file's text. Raises FileNotFoundError with a clear sentence."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"annotation file {path!r} does not exist")
    return pathlib.Path(path).read_text(encoding="utf-8")
