"""Image files under a root directory, by their names in annotations."""

from __future__ import annotations

import os
import pathlib
import stat
from collections.abc import Mapping, Sequence

from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.images import decode_image
from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.parallel.paths import as_path, glob_paths, is_remote


class ImageFiles:
    """Images by their names in annotations.

    Args:
      root: the directory to which names are relative.
      remap: replacements of name prefixes, of which the first match applies, e.g.
        `{"/export/share/vg/": "vg/"}` for annotations with absolute paths.

    Raises:
      FileNotFoundError: the root is not a directory.
    """

    def __init__(self, root: str, remap: Mapping[str, str] | None = None):
        self._root = as_path(root)
        self._remap = dict((remap or {}).items())
        if not self._root.is_dir():
            raise FileNotFoundError(f"image directory {root!r} does not exist")

    def path(self, name: str) -> pathlib.Path:
        """Return the path of an image; absolute names without a mapping are kept."""
        for prefix, replacement in self._remap.items():
            if name.startswith(prefix):
                name = replacement + name.removeprefix(prefix)
                break
        if is_remote(name) or os.path.isabs(name):  # also where the root is on a store
            return as_path(name)
        return self._root / name

    def load(self, name: str, at_least: int = 0) -> UInt8[Array, "height width 3"]:
        """Decode an image.

        Args:
          name: name in the annotations.
          at_least: see `decode_image`.

        Raises:
          BrokenSample: the image is missing or cannot be decoded.
        """
        return decode_image(self.read(name), name, at_least)

    def read(self, name: str) -> bytes:
        """Read the bytes of an image.

        Raises:
          BrokenSample: the image is missing or cannot be read.
        """
        # A store says by itself that an object is missing: one request for an image.
        path = self.path(name)
        path = path if is_remote(path) else self.check(name)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise BrokenSample("missing image", name, str(path)) from None
        except OSError as error:
            raise BrokenSample("unreadable image", name, str(error)) from None

    def check(self, name: str) -> pathlib.Path:
        """Check that an image is a file, and return its path.

        A named pipe, a device or a socket would block its reader for ever.

        Raises:
          BrokenSample: the image is missing or is no regular file.
        """
        path = self.path(name)
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise BrokenSample("missing image", name, str(path)) from None
        except (OSError, ValueError) as error:  # ValueError: a name with NUL
            raise BrokenSample("unreadable image", name, str(error)) from None
        if not stat.S_ISREG(mode):
            raise BrokenSample("image is no regular file", name, str(path))
        return path


def expand_paths(patterns: Sequence[str], what: str) -> list[pathlib.Path]:
    """Return the sorted paths that match paths or glob patterns.

    Args:
      patterns: the patterns. A path that exists is not a pattern.
      what: what is looked for, in errors: "tar".

    Raises:
      FileNotFoundError: a pattern matches no file.
    """
    paths: set[pathlib.Path] = set()
    for pattern in patterns:
        matches = glob_paths(pattern)
        if not matches:
            raise FileNotFoundError(f"no {what} matches {pattern!r}")
        paths.update(matches)
    return sorted(paths)
