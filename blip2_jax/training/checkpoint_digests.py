"""Digests of a checkpoint's files, which tell damage from an error of reading.

`digests.json` holds the SHA-256 of every array file. A checkpoint is damaged if a file
is missing or its content has another digest. An error of the file system, such as a
missing permission or a store that is away, says nothing about the content.
"""

from __future__ import annotations

import hashlib
import json
import pathlib

from blip2_jax.parallel.files import FileFormatError, read_json
from blip2_jax.parallel.paths import AnyPath, as_path

_DIGESTS = "digests.json"
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says which one and why."""


class DamagedCheckpoint(CheckpointError):
    """A file of a checkpoint is missing or has changed since it was written."""


def write_digests(path: pathlib.Path) -> None:
    """Write the digests of the array files of a checkpoint."""
    digests = {name: _digest(path / name) for name in _files(path)}
    (path / _DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")


def verify_files(path: pathlib.Path) -> None:
    """Compare the files of a checkpoint with their stored digests.

    Raises:
      DamagedCheckpoint: a file is missing or has changed.
      OSError: a file cannot be read.
    """
    for name, digest in listed_files(path).items():
        try:
            current = _digest(path / name)
        except _MISSING:
            raise DamagedCheckpoint(f"{path / name} is missing") from None
        if current != digest:
            raise DamagedCheckpoint(f"{path / name} has changed since it was written")


def listed_files(directory: AnyPath) -> dict[str, str]:
    """Return the stored digests of a checkpoint by name of the file.

    Raises:
      DamagedCheckpoint: the list is missing or has changed.
      OSError: it cannot be read.
    """
    path = as_path(directory) / _DIGESTS
    try:
        return dict(read_json(path))
    except _MISSING:
        raise DamagedCheckpoint(f"{path} is missing") from None
    except (FileFormatError, TypeError, ValueError) as error:
        raise DamagedCheckpoint(f"{path} has changed: {error}") from None


def _files(path: pathlib.Path) -> list[str]:
    """List the files of the trees. Orbax may still change those at the top level."""
    return [
        str(file.relative_to(path))
        for file in sorted(path.glob("*/**/*"))
        if file.is_file() and file.name != "commit_success.txt"
    ]


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
