"""A lock of the run directory: one owner at a time, be it one process or one job.

Process 0 of a job holds the lock for all. It is a lock of the operating system
(`flock`), which ends with the process that holds it, however that ends. File systems
without such locks, and object stores, get a written one: a file that its owner touches
every half minute.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import socket
import threading
import time
from typing import Any

from blip2_jax.parallel import hosts
from blip2_jax.parallel.files import FileFormatError, create_text, read_json
from blip2_jax.parallel.paths import is_remote
from blip2_jax.parallel.store_retries import StoreError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

FILE, WRITTEN = "lock", "lock.owner"
TOUCH_EVERY_S = 30.0
STALE_AFTER_S = 300.0  # a written lock that its owner has not touched for so long
_UNSUPPORTED = (
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EINVAL,
)


class RunLocked(RuntimeError):
    """Another process uses the directory; the message names its host and id."""


class RunLock:
    """The lock of a directory, for use in a `with` statement.

    On entry, a directory that exists is locked, and one on a store in any case. One
    that does not exist yet is locked by `acquire` when it has been created.

    Args:
      directory: directory of the run.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._held: _FileLock | _WrittenLock | None = None
        self._acquired = False

    def __enter__(self) -> RunLock:
        """Acquire the lock if the directory exists."""
        if is_remote(self._directory) or hosts.broadcast_from_first(
            self._directory.is_dir()
        ):
            self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        if self._held is not None:
            self._held.release()
        self._held, self._acquired = None, False

    def acquire(self) -> None:
        """Acquire the lock, unless it is held; all processes of a job must call this.

        Raises:
          RunLocked: another process or job holds it.
          OSError: the lock file cannot be written.
        """
        if self._acquired:
            return
        failure: Exception | None = None
        try:
            if hosts.is_first():
                self._held = _acquire(self._directory)
        except (RunLocked, OSError) as error:
            failure = error
        if not hosts.broadcast_from_first(failure is None):
            raise failure or RunLocked(f"process 0 cannot lock {self._directory}")
        self._acquired = True


def _acquire(directory: pathlib.Path) -> _FileLock | _WrittenLock:
    """Acquire the lock of the operating system, or a written one without it."""
    if is_remote(directory):
        return _WrittenLock(directory / WRITTEN)
    try:
        return _FileLock(directory / FILE)
    except _NoFileLocks:
        return _WrittenLock(directory / WRITTEN)


class _NoFileLocks(Exception):
    """The file system has no locks."""


class _FileLock:
    """An exclusive `flock` of a file, which names its owner for messages."""

    def __init__(self, path: pathlib.Path) -> None:
        self._file = path.open("a+")
        try:
            _flock(self._file.fileno())
        except BlockingIOError:
            self._file.close()
            raise RunLocked(_describe(path)) from None
        except _NoFileLocks:
            self._file.close()
            raise
        self._file.truncate(0)
        self._file.write(json.dumps(_owner()))
        self._file.flush()

    def release(self) -> None:
        """Release the lock; the file stays, because others may have opened it."""
        self._file.close()


def _flock(descriptor: int) -> None:
    """Lock a file exclusively without waiting.

    Raises:
      BlockingIOError: another process holds the lock.
      _NoFileLocks: the file system or operating system has no such locks.
    """
    if fcntl is None:
        raise _NoFileLocks
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            raise _NoFileLocks from error
        raise


class _WrittenLock:
    """A file that names its owner and is touched as long as the owner lives."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        if path.exists():
            if _is_alive(path):
                raise RunLocked(f"{_describe(path)} If it has ended, delete {path}")
            path.unlink(missing_ok=True)
        self._text = json.dumps(_owner())
        try:
            create_text(path, self._text)  # fails if another process was faster
        except FileExistsError:
            raise RunLocked(_describe(path)) from None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, daemon=True)
        self._thread.start()

    def _keep_fresh(self) -> None:
        while not self._ended.wait(TOUCH_EVERY_S):
            with contextlib.suppress(OSError, StoreError):
                if is_remote(self._path):  # a new object has a new time
                    self._path.write_text(self._text)
                else:
                    os.utime(self._path)

    def release(self) -> None:
        """Release the lock."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(StoreError):  # the lock gets stale
            self._path.unlink(missing_ok=True)


def _is_alive(path: pathlib.Path) -> bool:
    """Return False if the owner of a written lock has ended."""
    owner = _read_owner(path)
    if owner.get("host") == socket.gethostname() and "pid" in owner:
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # a process of another user
    probe = path.with_name(f"{path.name}.{os.getpid()}")
    probe.touch()  # the clock of the file system may differ from that of this host
    age = probe.stat().st_mtime - path.stat().st_mtime
    probe.unlink()
    return age < STALE_AFTER_S


def _owner() -> dict[str, Any]:
    """Return what a lock says about this process."""
    started = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": started}


def _read_owner(path: pathlib.Path) -> dict[str, Any]:
    """Read the owner of a lock; {} if the owner has not written it yet."""
    try:
        content = read_json(path)
    except (FileFormatError, OSError):
        return {}
    return content if isinstance(content, dict) else {}


def _describe(path: pathlib.Path) -> str:
    """Describe the owner of a lock."""
    owner = {"host": "?", "pid": "?", "since": "?", **_read_owner(path)}
    return (
        f"{path.parent} is in use: process {owner['pid']} on host {owner['host']} "
        f"trains there since {owner['since']}. Wait until it ends, stop it, or choose "
        "another --workdir."
    )
