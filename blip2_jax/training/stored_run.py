"""A run whose directory is on an object store.

The run works in a local staging directory. The logs (`metrics.jsonl`, TensorBoard's
events, ...) and then each complete checkpoint are uploaded by a thread, so that
training does not wait and no log ends before a checkpoint. At the start the staging
directory is filled from the store.

`session.json` holds a random number that each start of the run writes to both places.
If they agree, nobody has used the run since, and the staging directory may hold a
checkpoint that an outage of the store kept from being uploaded: it is used as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import secrets
import shutil
import threading
from collections.abc import Iterator

from blip2_jax.parallel import hosts
from blip2_jax.parallel.files import FileFormatError, read_json, write_atomically
from blip2_jax.parallel.store_cache import download
from blip2_jax.parallel.store_path import StorePath
from blip2_jax.parallel.store_retries import StoreError
from blip2_jax.parallel.user_cache import user_cache_directory
from blip2_jax.training import stored_checkpoints as checkpoints
from blip2_jax.training.checkpoints import LAST_CHECKPOINT
from blip2_jax.training.run_directory import EARLIER, set_aside
from blip2_jax.training.run_lock import RunLock, RunLocked
from blip2_jax.training.stored_checkpoints import CHECKPOINTS
from blip2_jax.training.train_config import CONFIG, ConfigError

STAGING = "BLIP2_JAX_STAGING"
_SESSION = "session.json"
_LOCKS = ("lock", "lock.owner")
_POINTERS = (LAST_CHECKPOINT, "best.json")  # name a checkpoint
_LOOK_EVERY_S = 0.2  # for the local checkpoint to be complete

logger = logging.getLogger(__name__)


class StoredRun:
    """A run directory on a store and its staging directory; process 0 transfers.

    Args:
      remote: directory of the run.
      restart: set the run that the store holds aside, as soon as `begin` is called.
      lock: of `remote`; nothing is uploaded after another process has taken it. None:
        the caller sees to it that no other process uses the run.

    Attributes:
      directory: the staging directory, which the run works in.
    """

    def __init__(
        self, remote: StorePath, restart: bool = False, lock: RunLock | None = None
    ) -> None:
        self.remote = remote
        self._lock = lock
        self.directory = staging_directory(remote)
        self._restart = restart
        self._stored: set[int] = set()  # steps of the whole checkpoints on the store
        self._uploaded: dict[str, tuple[int, int]] = {}  # size and time by name
        self._found = ""  # the session on the store
        self._saved = threading.Event()
        self._pending = 0  # step of the last save
        self._ended = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._keep_uploading, daemon=True)

    def open(self) -> None:
        """Fill the staging directory; all processes must call this.

        Raises:
          ConfigError: another host does not see the staging directory.
          StoreError: the store is away for too long.
        """
        mark = float(secrets.randbits(50))
        token = self.directory / "token"
        if hosts.is_first():
            self._fill()
            self.directory.mkdir(parents=True, exist_ok=True)
            token.write_text(str(mark))
        mark = hosts.broadcast_from_first(mark)
        seen = token.is_file() and token.read_text() == str(mark)
        if hosts.sum_over_hosts(not seen):
            raise ConfigError(
                f"{self.remote}: all hosts of a run need one staging directory: set "
                f"{STAGING} to a directory that they share (process 0 uses "
                f"{self.directory})"
            )

    def _fill(self) -> None:
        files = self.remote.files()
        self._found = _session(self.remote) if _SESSION in files else ""
        steps = checkpoints.whole_steps(self.remote, files)
        self._stored = set(steps)
        # A copy that was stopped half-way has no configuration.
        is_run = (self.directory / CONFIG).is_file()
        if is_run and self._found and _session(self.directory) == self._found:
            if not self._restart:
                return
            self.upload()  # what an outage kept here belongs to the former run
            self._uploaded = {}
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._restart or CONFIG not in files:
            return
        wanted = checkpoints.wanted_files(files, steps, (EARLIER, *_LOCKS))
        # The configuration comes last: a run without it is not taken for one.
        ordered = sorted(wanted, key=lambda name: name == CONFIG)
        logger.info("%s is copied to %s", self.remote, self.directory)
        download(self.remote, self.directory, dict.fromkeys(ordered))

    def begin(self) -> None:
        """Upload what the staging directory holds, then upload in the background.

        Raises:
          ConfigError: another process has begun a run there in the meantime.
          StoreError: the store is away for too long.
        """
        if not hosts.is_first():
            return
        on_store = (self.remote / _SESSION).is_file()
        if (_session(self.remote) if on_store else "") != self._found:
            raise ConfigError(
                f"another process has used the run in {self.remote} in the meantime: "
                "give the same command again"
            )
        if self._restart:
            set_aside(self.remote)
            self._stored = set()
        text = json.dumps({"session": secrets.token_hex(8)}) + "\n"
        write_atomically(self.directory / _SESSION, text)
        self.upload()
        self._thread.start()

    def saved(self, step: int) -> None:
        """Note that a checkpoint is being written, which will have to be uploaded.

        Raises:
          StoreError: an earlier upload failed; see `check`.
        """
        self.check()
        self._pending = step
        self._saved.set()

    def check(self) -> None:
        """Raise the error of the thread that uploads, if there was one.

        Raises:
          StoreError: the store was away for too long, or refuses.
          RunLocked: another process has taken the lock of the run.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            if isinstance(failure, RunLocked):
                raise failure
            raise StoreError(
                f"{failure}. The last whole checkpoint of {self.remote} is "
                f"{max(self._stored, default='missing')}; {self.directory} may hold a "
                "newer one, which is uploaded when this host continues the run"
            ) from failure

    def _keep_uploading(self) -> None:
        """Upload each checkpoint when it is complete."""
        while not self._ended and self._failure is None:
            self._saved.wait()
            self._saved.clear()
            complete = self.directory / CHECKPOINTS / str(self._pending)
            while not (self._ended or complete.is_dir() or self._saved.is_set()):
                self._saved.wait(_LOOK_EVERY_S)
            if not self._ended and complete.is_dir():
                self._try_upload()

    def _try_upload(self) -> None:
        """Upload and keep an error for `check`, which says what the store has."""
        try:
            self.upload()
        except Exception as error:
            self._failure = error

    def upload(self) -> None:
        """Make the store hold what the staging directory holds.

        Raises:
          RunLocked: another process has taken the lock of the run.
          StoreError: the store is away for too long.
        """
        if self._lock is not None:
            self._lock.check(look=True)
        whole = _local_steps(self.directory)
        names = sorted(_other_files(self.directory), key=_upload_order)
        for name in names:
            if name not in _POINTERS:
                self._upload_file(name)
        for step in sorted(whole - self._stored):
            name = f"{CHECKPOINTS}/{step}"
            try:
                checkpoints.upload_checkpoint(self.directory / name, self.remote / name)
                self._stored.add(step)
            except FileNotFoundError:  # deleted here in between: newer ones exist
                checkpoints.delete_checkpoint(self.remote / name)
        for name in _POINTERS:
            self._upload_file(name)
        for step in sorted(self._stored - whole):
            checkpoints.delete_checkpoint(self.remote / CHECKPOINTS / str(step))
            self._stored.remove(step)

    def _upload_file(self, name: str) -> None:
        """Upload a file if it has changed; not one that names a missing checkpoint."""
        file = self.directory / name
        with contextlib.suppress(FileNotFoundError):
            state = file.stat()
            mark = state.st_size, state.st_mtime_ns
            if self._uploaded.get(name) == mark:
                return
            data = file.read_bytes()
            if name in _POINTERS:
                step = json.loads(data)["step"]
                if step and step not in self._stored:
                    return
            (self.remote / name).write_bytes(data)
            self._uploaded[name] = mark

    def close(self, failed: bool) -> None:
        """Stop the thread and upload what is left.

        Args:
          failed: the run ends with an error, which an error here must not replace.

        Raises:
          StoreError: the store is away for too long.
        """
        if self._thread.ident is None:  # `begin` was not called, or failed
            return
        self._ended = True
        self._saved.set()
        self._thread.join()
        try:
            self.check()
            self._try_upload()
            self.check()
        except Exception as error:
            if not failed:
                raise
            logger.error("%s could not be uploaded: %s", self.directory, error)


@contextlib.contextmanager
def stored_run(
    directory: pathlib.Path, restart: bool, lock: RunLock
) -> Iterator[StoredRun | None]:
    """Open a run on a store, and at the end upload what is left.

    Yields:
      The run; None if the directory is local.
    """
    if not isinstance(directory, StorePath):
        yield None
        return
    run = StoredRun(directory, restart, lock)
    run.open()
    try:
        yield run
    except BaseException:
        run.close(failed=True)
        raise
    run.close(failed=False)


def staging_directory(remote: StorePath) -> pathlib.Path:
    """Return the staging directory of a run: in `BLIP2_JAX_STAGING` or the cache."""
    root = os.environ.get(STAGING) or user_cache_directory() / "runs"
    digest = hashlib.sha256(str(remote).encode()).hexdigest()[:12]
    return pathlib.Path(root) / f"{remote.name}-{digest}"


def _session(directory: pathlib.Path) -> str:
    """Return the session of a run directory; "" if it has none."""
    try:
        content = read_json(directory / _SESSION)
    except (OSError, FileFormatError):
        return ""
    return str(content.get("session", "")) if isinstance(content, dict) else ""


def _local_steps(directory: pathlib.Path) -> set[int]:
    """Return the steps of the complete checkpoints."""
    with contextlib.suppress(FileNotFoundError):
        paths = (directory / CHECKPOINTS).iterdir()
        return {int(path.name) for path in paths if path.name.isdigit()}
    return set()


def _other_files(directory: pathlib.Path) -> Iterator[str]:
    """Yield the names of the files that do not belong to a checkpoint."""
    # `os.walk` passes over directories that vanish, and checkpoints are left out before
    # it looks into those that orbax is writing.
    for root, directories, names in os.walk(directory):
        if pathlib.Path(root) == directory:
            directories[:] = [name for name in directories if name != CHECKPOINTS]
        for name in names:
            path = (pathlib.Path(root) / name).relative_to(directory).as_posix()
            if path not in ("token", *_LOCKS) and not path.endswith(".tmp"):
                yield path


def _upload_order(name: str) -> tuple[bool, bool, str]:
    """Sort the session first and the configuration, which makes it a run, last."""
    return name == CONFIG, name != _SESSION, name
