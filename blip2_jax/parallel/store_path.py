"""A path on an object store: the methods of `pathlib.Path`, over fsspec, with retries.

A store has objects and no directories. A directory exists as long as an object's name
begins with it; `mkdir` does nothing. An object appears whole under its name or not at
all, so that `write_bytes` and a file opened for writing need no temporary name. A
rename copies and deletes; that of a directory is not atomic.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import io
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Mapping
from typing import IO, Any

from etils.epath import gpath

from blip2_jax.parallel.store_files import TextUpload, Upload, open_ranges
from blip2_jax.parallel.store_retries import with_retries

# `pathlib` writes `s3://` as `s3:/`.
_URI = re.compile(r"(gs|s3):/+(.*)", re.DOTALL)
# The answers of a store are not kept: other processes write there. Repeating is up to
# `with_retries` alone.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": 60,
            "retries": {"total_max_attempts": 1},
        },
    },
    "gs": {"use_listings_cache": False},
}
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}


def store_uri(path: str | os.PathLike[str]) -> str | None:
    """Return the name of a path on a store; None if the path is a local one."""
    match = _URI.fullmatch(os.fspath(path))
    return match and f"{match[1]}://{match[2]}"


def file_system(scheme: str) -> Any:
    """Return fsspec's file system of a store.

    Raises:
      ImportError: its package is not installed.
    """
    try:
        import fsspec

        system = fsspec.filesystem(scheme, **_OPTIONS[scheme])
    except ImportError as error:
        raise ImportError(
            f"{scheme}:// needs the package {_PACKAGES[scheme]} ({error}): pip install "
            f"{_PACKAGES[scheme]}, or blip2_jax with the extra 'remote'"
        ) from error
    system.retries = 1  # s3fs would repeat five times, without a count
    return system


class StorePath(gpath.PosixGPath):
    """A path on an object store.

    Methods raise FileNotFoundError and PermissionError as `pathlib.Path` does, and
    StoreError if the store is away for too long.
    """

    @property
    def _scheme(self) -> str:
        return os.fspath(self).partition("://")[0]

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of fsspec's file system, with retries."""
        scheme = self._scheme
        # fsspec keeps the file system, and makes another one after a fork.
        return with_retries(
            lambda: getattr(file_system(scheme), method)(*args, **options), self
        )

    def _info(self) -> dict[str, Any] | None:
        """Return what the store says about an object or a directory; None if none."""
        try:
            return self._call("info", os.fspath(self))
        except FileNotFoundError:
            return None

    def exists(self, **_: Any) -> bool:
        """Return True if there is such an object or directory."""
        return self._info() is not None

    def is_dir(self, **_: Any) -> bool:
        """Return True if the names of objects begin with this path."""
        info = self._info()
        return info is not None and info["type"] == "directory"

    def is_file(self, **_: Any) -> bool:
        """Return True if this is an object."""
        info = self._info()
        return info is not None and info["type"] != "directory"

    def is_absolute(self) -> bool:
        """Return True."""
        return True

    def absolute(self) -> StorePath:
        """Return the path itself."""
        return self

    def resolve(self, strict: bool = False) -> StorePath:
        """Return the path itself."""
        return self

    def stat(self, **_: Any) -> os.stat_result:  # type: ignore[override]
        """Return mode, size and time as `pathlib.Path.stat` does.

        Raises:
          FileNotFoundError: there is no such object or directory.
        """
        info = self._call("info", os.fspath(self))
        is_directory = info["type"] == "directory"
        changed = info.get("LastModified") or info.get("mtime")
        seconds = int(changed.timestamp()) if hasattr(changed, "timestamp") else 0
        return os.stat_result(
            (
                (stat.S_IFDIR if is_directory else stat.S_IFREG) | 0o644,
                *(0, 0, 1, 0, 0),
                info.get("size") or 0,
                *[seconds] * 3,
            ),
            {"st_mtime": float(seconds), "st_mtime_ns": seconds * 10**9},
        )

    def file_state(self) -> tuple[int, str]:
        """Return the size in bytes, and the ETag or generation.

        Raises:
          FileNotFoundError: there is no such object.
        """
        info = self._call("info", os.fspath(self))
        if info["type"] == "directory":
            raise IsADirectoryError(f"{self} is a directory")
        return _state(info)

    def files(self) -> dict[str, tuple[int, str]]:
        """Return `file_state` of all objects below this directory.

        Returns:
          States by name relative to the directory, sorted; by "" if this is an object;
          {} if there is nothing.
        """
        found = self._call("find", os.fspath(self), detail=True)
        root = os.fspath(self).partition("://")[2]
        return {
            name.removeprefix(root).lstrip("/"): _state(info)
            for name, info in sorted(found.items())
            if not name.endswith("/")  # a directory that a console created
        }

    def iterdir(self) -> Iterator[StorePath]:  # type: ignore[override]
        """Yield the objects and directories directly in this directory."""
        for info in self._call("ls", os.fspath(self), detail=True):
            name = posixpath.basename(info["name"].rstrip("/"))
            # The directory itself may be an empty object, which consoles create.
            if info["name"].rstrip("/") != os.fspath(self).partition("://")[2]:
                yield self / name

    def glob(self, pattern: str) -> Iterator[StorePath]:  # type: ignore[override]
        """Yield the objects and directories that match a pattern, sorted."""
        return StorePath(posixpath.join(glob.escape(str(self)), pattern)).expand()

    def expand(self) -> Iterator[StorePath]:
        """Yield the objects and directories that this path as a pattern matches."""
        # The own search of fsspec leaves out directories that it fails to list.
        paths = [StorePath(*self.parts[:3])]  # the bucket
        for part in self.parts[3:]:
            if glob.has_magic(part):
                children = (child for path in paths for child in path._children())
                paths = [c for c in children if fnmatch.fnmatchcase(c.name, part)]
            else:
                paths = [path / part for path in paths]
        yield from sorted(
            path for path in paths if glob.has_magic(self.name) or path.exists()
        )

    def _children(self) -> list[StorePath]:
        """Return what is in this directory; [] if it does not exist."""
        try:
            return list(self.iterdir())
        except FileNotFoundError:
            return []

    def rglob(self, pattern: str) -> Iterator[StorePath]:  # type: ignore[override]
        """Yield the objects below this directory whose name matches, sorted."""
        for name in self.files():
            if name and fnmatch.fnmatchcase(posixpath.basename(name), pattern):
                yield self / name

    def read_range(self, offset: int, size: int) -> bytes:
        """Read a part of the object; fewer bytes if it ends before."""
        if size <= 0:
            return b""
        try:
            return self._call(
                "cat_file", os.fspath(self), start=offset, end=offset + size
            )
        except OSError:  # S3 refuses a range behind the end
            if offset >= self.file_state()[0]:
                return b""
            raise

    def read_bytes(self) -> bytes:
        """Read the whole object."""
        # s3fs would ask for the size first, to read in parts.
        options = {"max_concurrency": 1} if self._scheme == "s3" else {}
        return self._call("cat_file", os.fspath(self), **options)

    def read_text(self, encoding: str | None = None, **_: Any) -> str:
        """Read the whole object as text."""
        return self.read_bytes().decode(encoding or "utf-8")

    def write_bytes(self, data: bytes) -> int:  # type: ignore[override]
        """Write the whole object."""
        self._call("pipe_file", os.fspath(self), bytes(data))
        return len(data)

    def create(self, data: bytes) -> None:
        """Write the whole object, which must not exist yet.

        Raises:
          FileExistsError: it exists; of several processes one succeeds.
        """
        try:
            self._call("pipe_file", os.fspath(self), data, mode="create")
        except FileExistsError:
            if self.read_bytes() != data:  # else it was created, and the answer lost
                raise

    def write_text(self, text: str, encoding: str | None = None, **_: Any) -> int:  # type: ignore[override]
        """Write the whole object as text."""
        self.write_bytes(text.encode(encoding or "utf-8"))
        return len(text)

    def open(  # type: ignore[override]
        self, mode: str = "r", *, encoding: str | None = None, **_: Any
    ) -> IO[Any]:
        """Open the object for reading by ranges, or for writing as a whole.

        What is written goes to a local temporary file and is uploaded on `close`.

        Raises:
          ValueError: another mode; nothing can be appended to an object.
        """
        kind = mode.replace("b", "").replace("t", "")
        if kind == "r":
            size = self.file_state()[0]
            raw: Any = open_ranges(self.read_range, size, str(self))
        elif kind == "w":
            raw = Upload(self.upload)
            if "b" not in mode:
                return TextUpload(raw, encoding=encoding or "utf-8")
        else:
            raise ValueError(
                f"{self} cannot be opened with mode {mode!r}: an object of a store is "
                "read, or written as a whole"
            )
        if "b" in mode:
            return raw
        return io.TextIOWrapper(raw, encoding=encoding or "utf-8")

    def upload(self, file: str | os.PathLike[str]) -> None:
        """Write the content of a local file to the object."""
        self._call("put_file", os.fspath(file), os.fspath(self))

    def download(self, file: str | os.PathLike[str]) -> None:
        """Write the content of the object to a local file."""
        self._call("get_file", os.fspath(self), os.fspath(file))

    def mkdir(
        self, mode: Any = None, parents: bool = False, exist_ok: bool = False
    ) -> None:
        """Do nothing: a store has no directories."""
        if not exist_ok and self.exists():
            raise FileExistsError(f"{self} exists")

    def touch(self, **_: Any) -> None:
        """Create an empty object, unless there is one."""
        if not self.is_file():
            self.write_bytes(b"")

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(f"{self} does not exist")
        with contextlib.suppress(FileNotFoundError):  # an answer was lost
            self._call("rm_file", os.fspath(self))

    def rmtree(self, missing_ok: bool = False) -> None:
        """Delete all objects below this directory."""
        files = list(self.files())
        if not files and not missing_ok:
            raise FileNotFoundError(f"{self} does not exist")
        if files:
            names = [str(self / name if name else self) for name in files]
            with contextlib.suppress(FileNotFoundError):
                self._call("rm", names)

    def rename(self, target: Any) -> StorePath:  # type: ignore[override]
        """Copy the object, or all of a directory, to another name; delete the first."""
        target = StorePath(os.fspath(target))
        names = list(self.files())
        if not names:
            raise FileNotFoundError(f"{self} does not exist")
        for name in names:
            source, copy = (
                os.fspath(path / name if name else path) for path in (self, target)
            )
            self._call("cp_file", source, copy)
        self.rmtree()
        return target

    replace = rename  # type: ignore[assignment]


def _state(info: Mapping[str, Any]) -> tuple[int, str]:
    """Return the size of an object, and its generation, ETag or time."""
    marks = (info.get(k) for k in ("generation", "ETag", "etag", "LastModified"))
    mark = next((mark for mark in marks if mark), info.get("mtime"))
    return int(info["size"]), str(mark).strip('"')
