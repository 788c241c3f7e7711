"""Building of the index of a set of tars: in parallel, once, and what has changed.

The index directory holds a directory for each set of tars, which is a list of patterns:

    tars-SET/lock                 held by the process that builds
    tars-SET/parts/TAR.npz        indices of single tars during a build
    tars-SET/index-STATE/         the index (`tar_set_index`)

STATE is a digest of the paths, sizes and times of the tars. If one of them changes, the
others are copied from the index before. A build that was killed goes on with the parts
that it had finished.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import IO

from blip2_jax.data.sources.tar_index import TarIndex, read_tar_index
from blip2_jax.data.sources.tar_scanning import scan_tars
from blip2_jax.data.sources.tar_set_index import DamagedIndex, TarSetIndex, TarState
from blip2_jax.data.sources.tar_set_writer import write_index
from blip2_jax.parallel.paths import file_state, is_remote
from blip2_jax.parallel.user_cache import user_cache_directory

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_STATE_THREADS = 32  # that ask for the states of tars, which may be far away


def open_tar_set(
    patterns: Sequence[str], paths: Sequence[pathlib.Path], index_directory: str = ""
) -> TarSetIndex:
    """Open the index of a set of tars; build it if there is none, or an old one.

    Args:
      patterns: the patterns that name the set.
      paths: the tars that match, in their order.
      index_directory: directory of the indices; "": in the user's cache. If it cannot
        be written, the index is built in a temporary directory.

    Raises:
      ValueError: a file is not a tar, is damaged or compressed.
    """
    if is_remote(index_directory):
        raise ValueError(
            f"index_directory={index_directory!r} must be a local directory"
        )
    home, tars = set_directory(patterns, index_directory), tar_states(paths)
    if (index := _open(home, tars)) is not None:
        return index
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "lock").open("w")
    except OSError as error:
        logger.warning(
            "the index of %d tars is not kept, because %s cannot be written (%s); set "
            "index_directory of the source",
            len(tars),
            home,
            error.strerror,
        )
        return _build_temporary(paths, tars)
    with lock:
        alone = _acquire(lock)
        if (index := _open(home, tars)) is None:
            index = _build(home, paths, tars)
            if alone:
                _clean(home, index.directory)
    return index


def set_directory(patterns: Sequence[str], index_directory: str = "") -> pathlib.Path:
    """Return the directory of a set of tars; see `open_tar_set`."""
    directory = pathlib.Path(index_directory or user_cache_directory() / "tars")
    absolute = [p if is_remote(p) else os.path.abspath(p) for p in patterns]
    return directory / f"tars-{_digest(absolute)}"


def index_path(home: pathlib.Path, tars: Sequence[TarState]) -> pathlib.Path:
    """Return the directory of the index of a set of tars in this state."""
    return home / f"index-{_digest(tars)}"


def tar_states(paths: Sequence[pathlib.Path]) -> list[TarState]:
    """Return the states of tars.

    Raises:
      ValueError: one is no regular file.
    """
    with concurrent.futures.ThreadPoolExecutor(_STATE_THREADS) as pool:
        return list(pool.map(_state, paths))


def _state(path: pathlib.Path) -> TarState:
    try:
        # A named pipe would block its reader.
        if is_remote(path) or path.is_file():
            name = str(path) if is_remote(path) else os.path.abspath(path)
            return TarState(name, *file_state(path))
    except (FileNotFoundError, IsADirectoryError):
        pass
    raise ValueError(f"{path} is not a regular file")


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _part(home: pathlib.Path, tar: TarState) -> pathlib.Path:
    return home / "parts" / f"{_digest(tar)}.npz"


def _open(home: pathlib.Path, tars: Sequence[TarState]) -> TarSetIndex | None:
    """Open the index of tars; None if there is none, or if it is damaged."""
    try:
        index = TarSetIndex(index_path(home, tars))
    except DamagedIndex:
        return None
    return index if index.tars == tars else None


def _acquire(lock: IO[str]) -> bool:
    """Wait until no other process builds; False if the file system has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning("waiting for another process that indexes the same tars")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _build(
    home: pathlib.Path, paths: Sequence[pathlib.Path], tars: Sequence[TarState]
) -> TarSetIndex:
    """Build the index of tars from the one before and from scans of what it lacks."""
    (home / "parts").mkdir(exist_ok=True)
    earlier = list(_earlier_indices(home))
    known = {
        tar: (index, number)
        for index in earlier
        for number, tar in enumerate(index.tars)
    }
    scan_tars(
        [
            (path, part)
            for path, tar in zip(paths, tars, strict=True)
            if tar not in known and read_tar_index(part := _part(home, tar)) is None
        ]
    )

    def index_of(tar: TarState) -> TarIndex:
        if tar in known:
            index, number = known[tar]
            return index.tar_index(number)
        part = read_tar_index(_part(home, tar))
        if part is None:
            raise OSError(f"the index of {tar.path} in {home} cannot be read back")
        return part

    new = index_path(home, tars)
    temporary = home / f".{new.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write_index(temporary, tars, map(index_of, tars))
    shutil.rmtree(new, ignore_errors=True)  # it is damaged
    temporary.replace(new)
    return TarSetIndex(new)


def _earlier_indices(home: pathlib.Path) -> Iterator[TarSetIndex]:
    """Yield the indices of earlier states of the set that are whole."""
    for directory in sorted(home.glob("index-*")):
        with contextlib.suppress(DamagedIndex):
            yield TarSetIndex(directory)


def _clean(home: pathlib.Path, current: pathlib.Path) -> None:
    """Delete everything but the current index and the newest other one.

    A run that uses that one may still start workers, which open it by its name.
    """
    others = [path for path in home.glob("index-*") if path != current]
    others.sort(key=lambda path: path.stat().st_mtime)
    kept = [current, *others[-1:]]
    for entry in home.iterdir():
        if entry.is_dir() and entry not in kept:
            shutil.rmtree(entry, ignore_errors=True)


def _build_temporary(
    paths: Sequence[pathlib.Path], tars: Sequence[TarState]
) -> TarSetIndex:
    """Build an index that is deleted when it is no longer used."""
    home = pathlib.Path(tempfile.mkdtemp(prefix="blip2_jax-tars-"))
    try:
        index = _build(home, paths, tars)
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    weakref.finalize(index, shutil.rmtree, home, ignore_errors=True)
    return index
