"""A lock of the run directory: one owner at a time, be it one process or one job.

Process 0 of a job holds the lock for all. It is a lock of the operating system
(`flock`), which ends with the process that holds it, however that ends. File systems
without such locks, and object stores, get a written one: a file that its owner touches
every half minute. A process that was cut off while another one took its stale lock
finds the other's token in the file, and ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from typing import Any

from blip2_jax.parallel import hosts
from blip2_jax.parallel.files import FileFormatError, create_text, read_json
from blip2_jax.parallel.paths import is_remote
from blip2_jax.parallel.store_retries import StoreError, patience_s

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

FILE, WRITTEN = "lock", "lock.owner"
TOUCH_EVERY_S = 30.0
STALE_AFTER_S = 300.0  # a written lock that its owner has not touched for so long
SETTLE_S = 5.0  # until all that found the same stale lock have replaced it
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

    def check(self, look: bool = False) -> None:
        """Check that no other process has taken the lock since it was acquired.

        Args:
          look: read the file of a written lock, which is otherwise done every half
            minute.

        Raises:
          RunLocked: another process has taken it.
          OSError, StoreError: the file cannot be read.
        """
        if isinstance(self._held, _WrittenLock):
            self._held.check(look)


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
        self._stale_after_s = _stale_after_s(path)
        self._lost = False
        own = {"token": secrets.token_hex(8), "stale_after_s": self._stale_after_s}
        self._text = json.dumps({**_owner(), **own})
        is_stale = path.exists()
        if is_stale:
            if _is_alive(path):
                raise RunLocked(f"{_describe(path)} If it has ended, delete {path}")
            path.unlink(missing_ok=True)
        try:
            create_text(path, self._text)  # fails if another process was faster
        except FileExistsError:
            raise RunLocked(_describe(path)) from None
        if is_stale:  # a slower process may have deleted this lock as the stale one
            time.sleep(SETTLE_S)
            if self._is_lost():
                raise RunLocked(_describe(path))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, daemon=True)
        self._thread.start()

    def _keep_fresh(self) -> None:
        while not self._ended.wait(TOUCH_EVERY_S):
            with contextlib.suppress(OSError, StoreError):
                if self._is_lost():
                    return
                if is_remote(self._path):  # a new object has a new time
                    self._path.write_text(self._text)
                else:
                    os.utime(self._path)

    def _is_lost(self) -> bool:
        """Read the file: return True if it is gone or another process's, for good."""
        try:
            self._lost = self._lost or self._path.read_text() != self._text
        except FileNotFoundError:
            self._lost = True
        return self._lost

    def check(self, look: bool) -> None:
        """See `RunLock.check`."""
        if self._lost or (look and self._is_lost()):
            raise RunLocked(
                f"{self._path.parent} is no longer this process's: its lock "
                f"{self._path} was deleted, or taken by another process because it "
                f"was not touched for {self._stale_after_s:.0f} s. This process ends "
                "and leaves the directory alone; the same command continues the run "
                "when no other process trains there"
            )

    def release(self) -> None:
        """Release the lock, unless it is another process's."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError, StoreError):  # the lock gets stale
            if not self._is_lost():
                self._path.unlink(missing_ok=True)


def _stale_after_s(path: pathlib.Path) -> float:
    """Return when a written lock is stale: not while its owner waits for the store."""
    if not is_remote(path):
        return STALE_AFTER_S
    return max(STALE_AFTER_S, patience_s() + 4 * TOUCH_EVERY_S)


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
    return age < owner.get("stale_after_s", STALE_AFTER_S)


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
