"""Files that are whole under their names: written beside them and renamed.

Temporary names hold the machine, the process and a random part, so that two writers of
one file do no harm: both write the same, and the last one to finish is read. On an
object store the file is copied to its name, where it appears when it is whole.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pathlib
import re
import socket
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

_SUFFIX = ".tmp"


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Rename the file that the block writes, or delete it after an error.

    Args:
      path: name of the whole file. Its directory is made.

    Yields:
      The path to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    random = uuid.uuid4().hex[:8]
    temporary = path.parent / f".{path.name}.{_owner(os.getpid())}.{random}{_SUFFIX}"
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write a JSON file that is whole under its name."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def delete_unfinished(path: pathlib.Path, process: int) -> None:
    """Delete what a dead process of this machine was writing for a file."""
    pattern = f".{glob.escape(path.name)}*.{_owner(process)}.*{_SUFFIX}"
    for file in path.parent.glob(pattern):
        file.unlink(missing_ok=True)


def delete_leftovers(files: Iterable[pathlib.Path], *, of_others: bool) -> None:
    """Delete those files that processes were writing when they died.

    Args:
      files: the files of a directory.
      of_others: also what live processes and other machines write. Only those of this
        machine are known to be dead.
    """
    form = re.compile(rf"\..+\.(.+)\.(\d+)\.[0-9a-f]{{8}}{re.escape(_SUFFIX)}")
    for file in files:
        match = form.fullmatch(file.name)
        if match and (of_others or _is_dead_here(match[0], int(match[2]))):
            file.unlink(missing_ok=True)


def _owner(process: int) -> str:
    return f"{socket.gethostname()}.{process}"


def _is_dead_here(name: str, process: int) -> bool:
    """Return True if a file's writer was a process of this machine that has ended."""
    if f".{_owner(process)}." not in name:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        return False
    return False
