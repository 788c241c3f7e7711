"""Checkpoints of a run on an object store, which has no rename that is atomic.

A checkpoint is uploaded file by file. `uploaded.json` in it lists the files with their
sizes and is written last: a checkpoint without it, or with other files, is not whole
and is not used. A run that another program copied to the store has no such files; its
checkpoints are whole if nothing is missing of what their `digests.json` lists.
"""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Container, Iterator, Mapping

from blip2_jax.parallel.files import FileFormatError, read_json
from blip2_jax.parallel.paths import AnyPath, as_path
from blip2_jax.parallel.store_cache import local_copy
from blip2_jax.parallel.store_path import StorePath
from blip2_jax.parallel.store_retries import StoreError
from blip2_jax.training.checkpoint_digests import DamagedCheckpoint, listed_files

CHECKPOINTS = "checkpoints"
MARKER = "uploaded.json"
ORBAX_METADATA = "_CHECKPOINT_METADATA"
# What a run keeps and a reader of the run does not need.
_NOT_READ = ("damaged", "earlier", "tensorboard", "wandb")
Files = Mapping[str, tuple[int, str]]  # size and ETag by name (`StorePath.files`)

logger = logging.getLogger(__name__)


def upload_checkpoint(local: pathlib.Path, remote: StorePath) -> None:
    """Upload a checkpoint; the marker last.

    Raises:
      FileNotFoundError: the local checkpoint was deleted in the meantime.
      StoreError: the store is away for too long, or has a file of another size.
    """
    delete_checkpoint(remote)
    sizes = {}
    for file in sorted(path for path in local.rglob("*") if path.is_file()):
        name = file.relative_to(local).as_posix()
        if file.parent == local:  # orbax may still write these small files again
            sizes[name] = (remote / name).write_bytes(file.read_bytes())
        else:
            sizes[name] = file.stat().st_size
            (remote / name).upload(file)
    present = remote.files()
    for name, size in sizes.items():
        if (stored := present.get(name, (0, ""))[0]) != size:
            raise StoreError(f"{remote / name} has {stored} bytes, {size} were written")
    (remote / MARKER).write_text(json.dumps({"files": sizes}, indent=1) + "\n")


def delete_checkpoint(remote: StorePath) -> None:
    """Delete a checkpoint; the marker first."""
    (remote / MARKER).unlink(missing_ok=True)
    remote.rmtree(missing_ok=True)


def whole_steps(run: StorePath, files: Files) -> list[int]:
    """Return the steps of the checkpoints that were uploaded as a whole.

    Args:
      run: directory of the run.
      files: its files.
    """
    steps, checkpoints = [], _by_step(files)
    is_copy = not any(MARKER in present for present in checkpoints.values())
    for step, present in sorted(checkpoints.items()):
        if is_copy and _has_listed_files(run / CHECKPOINTS / str(step), present):
            steps.append(step)
            continue
        if MARKER not in present:
            logger.warning("%s: checkpoint %d was not uploaded as a whole", run, step)
            continue
        try:
            sizes = dict(read_json(run / CHECKPOINTS / str(step) / MARKER)["files"])
        except (FileFormatError, FileNotFoundError, TypeError, KeyError, ValueError):
            sizes = {"": 0}
        if all(present.get(name, (-1, ""))[0] == size for name, size in sizes.items()):
            steps.append(step)
        else:
            logger.warning("%s: checkpoint %d lacks files", run, step)
    return steps


def _has_listed_files(checkpoint: StorePath, present: Container[str]) -> bool:
    """Return True if the files are there that `digests.json` and orbax name."""
    try:
        names = listed_files(checkpoint)
    except DamagedCheckpoint:
        return False
    return all(name in present for name in (*names, ORBAX_METADATA))


def _by_step(files: Files) -> dict[int, dict[str, tuple[int, str]]]:
    """Return the files of each checkpoint, by step."""
    checkpoints: dict[int, dict[str, tuple[int, str]]] = {}
    for name, state in files.items():
        if (step := step_of(name)) is not None:
            rest = name.split("/", 2)[2]
            checkpoints.setdefault(step, {})[rest] = state
    return checkpoints


def step_of(name: str) -> int | None:
    """Return the step of the checkpoint that a file of a run belongs to, or None."""
    parts = name.split("/", 2)
    is_inside = len(parts) == 3 and parts[0] == CHECKPOINTS and parts[1].isdigit()
    return int(parts[1]) if is_inside else None


def wanted_files(
    files: Files, steps: list[int], left_out: tuple[str, ...]
) -> list[str]:
    """Return the names of a run's files without those of other checkpoints.

    Args:
      files: of the run.
      steps: of the checkpoints.
      left_out: files and directories of the run to leave out.
    """

    def names() -> Iterator[str]:
        for name in files:
            top = name.partition("/")[0]
            if step_of(name) in steps or top not in (CHECKPOINTS, *left_out):
                yield name

    return list(names())


def readable_run(run_dir: AnyPath) -> pathlib.Path:
    """Return a local copy of a run with its whole checkpoints; a local run as it is.

    Raises:
      StoreError: the store is away for too long.
    """
    remote = as_path(run_dir)
    if not isinstance(remote, StorePath):
        return remote
    files = remote.files()
    wanted = set(wanted_files(files, whole_steps(remote, files), _NOT_READ))
    return local_copy(remote, wanted.__contains__)
