"""A path on an object store: the methods of `pathlib.Path`, over fsspec, with retries.

A store has objects and no directories. A directory exists as long as an object's name
begins with it; `mkdir` does nothing. An object appears whole under its name or not at
all, so that `write_bytes` and a file opened for writing need no temporary name. A
rename copies and deletes; that of a directory is not atomic.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import os
import posixpath
import re
import stat
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from etils.epath import gpath

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
_READ_AHEAD = 2**20  # bytes


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

        return fsspec.filesystem(scheme, **_OPTIONS[scheme])
    except ImportError as error:
        raise ImportError(
            f"{scheme}:// needs the package {_PACKAGES[scheme]}: pip install "
            f"'blip2_jax[remote]' ({error})"
        ) from error


class StorePath(gpath.PosixGPath):
    """A path on an object store.

    Methods raise FileNotFoundError and PermissionError as `pathlib.Path` does, and
    StoreError if the store is away for too long.
    """

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of fsspec's file system, with retries."""
        scheme = os.fspath(self).partition("://")[0]
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
        seconds = changed.timestamp() if hasattr(changed, "timestamp") else 0
        return os.stat_result(
            (
                (stat.S_IFDIR if is_directory else stat.S_IFREG) | 0o644,
                *(0, 0, 1, 0, 0),
                info.get("size") or 0,
                *[int(seconds)] * 3,
            )
        )

    def file_state(self) -> tuple[int, str]:
        """Return the size in bytes, and the ETag or generation.

        Raises:
          FileNotFoundError: there is no such object.
        """
        info = self._call("info", os.fspath(self))
        if info["type"] == "directory":
            raise IsADirectoryError(f"{self} is a directory")
        mark = next(
            (info[name] for name in ("generation", "ETag", "etag") if info.get(name)),
            info.get("LastModified") or info.get("mtime"),
        )
        return int(info["size"]), str(mark).strip('"')

    def iterdir(self) -> Iterator[StorePath]:  # type: ignore[override]
        """Yield the objects and directories directly in this directory."""
        for info in self._call("ls", os.fspath(self), detail=True):
            name = posixpath.basename(info["name"].rstrip("/"))
            # The directory itself may be an empty object, which consoles create.
            if info["name"].rstrip("/") != os.fspath(self).partition("://")[2]:
                yield self / name

    def glob(self, pattern: str) -> Iterator[StorePath]:  # type: ignore[override]
        """Yield the objects and directories that match a pattern, sorted."""
        scheme, _, root = os.fspath(self).partition("://")
        full = posixpath.join(_escape(root), pattern)
        for name in sorted(self._call("glob", full)):
            yield StorePath(f"{scheme}://{name}")

    def rglob(self, pattern: str) -> Iterator[StorePath]:  # type: ignore[override]
        """Yield the objects below this directory whose name matches, sorted."""
        scheme = os.fspath(self).partition("://")[0]
        for name in sorted(self._call("find", os.fspath(self))):
            if fnmatch.fnmatchcase(posixpath.basename(name), pattern):
                yield StorePath(f"{scheme}://{name}")

    def read_range(self, offset: int, size: int) -> bytes:
        """Read a part of the object; fewer bytes if it ends before."""
        if size <= 0:
            return b""
        return self._call("cat_file", os.fspath(self), offset, offset + size)

    def read_bytes(self) -> bytes:
        """Read the whole object."""
        return self._call("cat_file", os.fspath(self))

    def read_text(self, encoding: str | None = None, **_: Any) -> str:
        """Read the whole object as text."""
        return self.read_bytes().decode(encoding or "utf-8")

    def write_bytes(self, data: bytes) -> int:  # type: ignore[override]
        """Write the whole object."""
        self._call("pipe_file", os.fspath(self), bytes(data))
        return len(data)

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
          FileExistsError: mode "x", and the object exists.
          ValueError: another mode; nothing can be appended to an object.
        """
        kind = mode.replace("b", "").replace("t", "")
        if kind == "r":
            size = self.file_state()[0]
            raw: Any = io.BufferedReader(_RangeReader(self, size), _READ_AHEAD)
        elif kind in ("w", "x"):
            if kind == "x" and self.exists():
                raise FileExistsError(f"{self} exists")
            raw = _Upload(self)
            if "b" not in mode:
                return _TextUpload(raw, encoding=encoding or "utf-8")
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

    def mkdir(self, mode: Any = None, parents: bool = False, exist_ok: bool = False):
        """Do nothing: a store has no directories."""
        if not exist_ok and self.exists():
            raise FileExistsError(f"{self} exists")

    def touch(self, **_: Any) -> None:
        """Create an empty object, unless there is one."""
        if not self.is_file():
            self.write_bytes(b"")

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        if not self.is_file():
            if missing_ok:
                return
            raise FileNotFoundError(f"{self} does not exist")
        with contextlib.suppress(FileNotFoundError):  # an answer was lost
            self._call("rm_file", os.fspath(self))

    def rmtree(self, missing_ok: bool = False) -> None:
        """Delete all objects below this directory."""
        if self.exists():
            with contextlib.suppress(FileNotFoundError):
                self._call("rm", os.fspath(self), recursive=True)
        elif not missing_ok:
            raise FileNotFoundError(f"{self} does not exist")

    def rename(self, target: Any) -> StorePath:  # type: ignore[override]
        """Copy the object, or all of a directory, to another name; delete the first."""
        target = StorePath(os.fspath(target))
        names = sorted(self._call("find", os.fspath(self)))
        if not names:
            raise FileNotFoundError(f"{self} does not exist")
        root = os.fspath(self).partition("://")[2]
        for name in names:
            copy = os.fspath(target) + name.removeprefix(root)
            self._call("cp_file", name, copy.partition("://")[2])
        self.rmtree() if self.is_dir() else self.unlink(missing_ok=True)
        return target

    replace = rename  # type: ignore[assignment]


def _escape(text: str) -> str:
    """Escape the characters of patterns."""
    return re.sub(r"([*?[])", r"[\1]", text)


class _RangeReader(io.RawIOBase):
    """The content of an object, fetched as it is read."""

    def __init__(self, path: StorePath, size: int) -> None:
        self._path, self._size, self._position = path, size, 0
        self.name = os.fspath(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        self._position = max(0, start[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._size - self._position)
        if size <= 0:
            return 0
        data = self._path.read_range(self._position, size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _Upload(io.BufferedWriter):
    """A local temporary file that is uploaded when it is closed without an error."""

    def __init__(self, path: StorePath) -> None:
        self._path = path
        self._temporary = tempfile.NamedTemporaryFile(prefix="blip2_jax-")  # noqa: SIM115
        super().__init__(io.FileIO(self._temporary.name, "r+b"))

    def __exit__(self, *error: Any) -> None:
        self.close(upload=error[0] is None)

    def close(self, upload: bool = True) -> None:
        """Upload the content and delete the temporary file."""
        if self.closed:
            return
        super().close()
        try:
            if upload:
                self._path.upload(self._temporary.name)
        finally:
            self._temporary.close()


class _TextUpload(io.TextIOWrapper):
    """Text over an `_Upload`."""

    def __exit__(self, *error: Any) -> None:
        if error[0] is not None:
            self.detach().close(upload=False)  # type: ignore[call-arg]
            return
        self.close()
