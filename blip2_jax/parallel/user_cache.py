"""The directory for files that this package can make again."""

from __future__ import annotations

import os
import pathlib
import sys


def user_cache_directory() -> pathlib.Path:
    """Return `blip2_jax` in the user's cache directory; it need not exist.

    That is `XDG_CACHE_HOME` if it is set, `~/Library/Caches` on macOS and `~/.cache`
    on other systems.

    Raises:
      RuntimeError: the user has no home directory.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    if not root:
        caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
        root = str(pathlib.Path.home() / caches)
    return pathlib.Path(root) / "blip2_jax"
