"""Local copies of files and folders on object stores, for libraries that need files.

Copies are in `stores/` in the user's cache directory, under the digest of their name
and of the sizes and ETags of their objects, so that a changed object is copied again.
A copy gets its name when it is whole. Old copies are not deleted.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping

import filelock

from blip2_jax.parallel.paths import AnyPath, as_path
from blip2_jax.parallel.store_path import StorePath
from blip2_jax.parallel.user_cache import user_cache_directory


def local_copy(
    path: AnyPath, wanted: Callable[[str], bool] = lambda name: True
) -> pathlib.Path:
    """Return the path of a local copy of a file or folder; a local one is not copied.

    Args:
      path: a local path, or one on a store.
      wanted: selects the files of a folder by their names relative to it.

    Returns:
      The path of the copy, whose last part is that of `path`. If the store has nothing
      there, a path that does not exist.

    Raises:
      OSError: a file cannot be read or written.
      StoreError: the store is away for too long.
    """
    remote = as_path(path)
    if not isinstance(remote, StorePath):
        return remote
    files = {name: state for name, state in remote.files().items() if wanted(name)}
    identity = json.dumps([str(remote), sorted(files.items())])
    digest = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()
    directory = user_cache_directory() / "stores" / digest[:24]
    copy = directory / remote.name
    if not files or copy.exists():
        return copy
    directory.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(directory / ".lock"):  # the processes of a host copy once
        if not copy.exists():
            unfinished = directory / f"{remote.name}.unfinished"
            _remove(unfinished)
            download(remote, unfinished, files)
            unfinished.rename(copy)
    return copy


def download(remote: StorePath, target: pathlib.Path, files: Mapping[str, object]):
    """Copy objects to local files.

    Args:
      remote: the object, or the folder.
      target: the local file, or folder.
      files: names relative to the folder; "" for a single object.
    """
    for name in files:
        file = target / name if name else target
        file.parent.mkdir(parents=True, exist_ok=True)
        (remote / name if name else remote).download(file)


def _remove(path: pathlib.Path) -> None:
    """Delete a file or folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
