"""Checkpoints of a training run: asynchronous, complete or absent, verified.

`RUN/checkpoints/STEP/` holds one orbax tree a name (`trainable`, `optimizer`,
`carried`), `meta` (JSON) and `digests.json`, the SHA-256 of every array file. The
directory gets its final name when all of it is on disk, so a save that was killed
leaves nothing that looks like a checkpoint. The last `keep` and the best by
evaluation stay. Frozen weights are not here: `RUN/sources.json` names them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from blip2_jax.parallel import hosts

PyTree = Any
logger = logging.getLogger(__name__)

_DIGESTS = "digests.json"
_UNFINISHED = "*.orbax-checkpoint-tmp"


def is_run(path: str | pathlib.Path) -> bool:
    """Return True if the path is the directory of a training run."""
    return pathlib.Path(path, "checkpoints").is_dir()


class CheckpointError(RuntimeError):
    """A checkpoint that is missing or damaged; the message says which and why."""


def parse_checkpoint(text: str) -> str | int:
    """Return a checkpoint's step as a number, and "best" and "last" as they are."""
    return int(text) if text.isdigit() else text


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
      step: how many steps had been taken.
      trees: the trees by name.
      meta: the JSON facts that `Checkpoints.save` was given.
    """

    step: int
    trees: dict[str, PyTree]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      run_dir: the run; `checkpoints/` below it is made when first needed.
      keep: how many of the newest to keep; the best one stays beside them.
      mode: "max" or "min": which metric is best.
      read_only: look only, never clean up or write.
    """

    def __init__(
        self,
        run_dir: str | pathlib.Path,
        *,
        keep: int = 2,
        mode: str = "max",
        read_only: bool = False,
    ) -> None:
        self.run_dir = pathlib.Path(run_dir).absolute()
        self.directory = self.run_dir / "checkpoints"
        self._sign = 1.0 if mode == "max" else -1.0
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(
                [
                    managers.LatestN(keep),
                    managers.BestN(
                        get_metric_fn=lambda metrics: self._sign * metrics["metric"],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=lambda: _write_digests(self.directory)
            ),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=self._options)

    def steps(self) -> list[int]:
        """The complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        trees: Mapping[str, PyTree],
        meta: Mapping[str, Any],
        metric: float | None = None,
    ) -> None:
        """Start to save; returns when the arrays have been copied from the devices.

        A step that is there already is left as it is. An error of the save before
        this one is raised here.
        """
        if step in self._manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        score = {} if metric is None else {"metric": float(metric)}
        self._manager.save(
            step,
            args=ocp.args.Composite(**items, meta=ocp.args.JsonSave({**meta, **score})),
            metrics=score or None,
        )

    def restore(self, targets: Mapping[str, PyTree]) -> Restored | None:
        """The newest checkpoint that is intact, placed as the targets are.

        A damaged one is moved to `RUN/damaged/` and the one before is tried.

        Args:
          targets: arrays or `jax.ShapeDtypeStruct`s with shardings, by tree name;
            the mesh may differ from the one that saved.

        Returns:
          None where the run has no checkpoint.

        Raises:
          CheckpointError: there are checkpoints, and all of them are damaged.
        """
        steps = self.steps()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(targets))
        for step in reversed(steps):
            restored = self._try(step, abstract)
            if restored is not None:
                return restored
            self._set_aside(step)
        if steps:
            raise CheckpointError(
                f"none of the checkpoints {steps} of {self.run_dir} can be read; "
                "they are in damaged/"
            )
        return None

    def _try(self, step: int, abstract: Mapping[str, PyTree]) -> Restored | None:
        """A checkpoint that every process could read; else None in all of them."""
        restored, wrong = None, None
        try:
            if hosts.is_first():
                verify_files(self.directory / str(step))
        except Exception as error:
            wrong = error
        if hosts.broadcast_from_first(wrong is None):
            try:
                restored = self._restore_step(step, abstract)
            except Exception as error:
                wrong = error
        if wrong is not None:
            logger.error("checkpoint %d cannot be read: %s", step, _first(wrong))
        return None if hosts.sum_over_hosts(restored is None) else restored

    def _restore_step(self, step: int, abstract: Mapping[str, PyTree]) -> Restored:
        items = {
            name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()
        }
        got = self._manager.restore(
            step, args=ocp.args.Composite(**items, meta=ocp.args.JsonRestore())
        )
        return Restored(step, {name: got[name] for name in items}, got["meta"])

    def _set_aside(self, step: int) -> None:
        if hosts.is_first():
            damaged = self.run_dir / "damaged"
            damaged.mkdir(exist_ok=True)
            target = damaged / str(step)
            while target.exists():
                target = target.with_name(target.name + "_")
            (self.directory / str(step)).rename(target)
        hosts.barrier("the damaged checkpoint is out of the way")
        self._manager.reload()

    def read(self, step: int, names: tuple[str, ...]) -> Restored:
        """Trees as nested dicts of numpy arrays, on no device, with no target.

        Names that the checkpoint lacks are left out.

        Raises:
          CheckpointError: the checkpoint is damaged.
        """
        path = self.directory / str(step)
        verify_files(path)
        trees = {}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            for name in names:
                if not (path / name).exists():
                    continue
                shapes = reader.metadata(path / name).item_metadata.tree
                as_numpy = jax.tree.map(
                    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes
                )
                trees[name] = reader.restore(
                    path / name, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
                )
        return Restored(step, trees, self.meta(step))

    def best(self) -> tuple[int, float] | None:
        """Step and metric of the best complete checkpoint that was evaluated."""
        scored = [
            (step, metric)
            for step in self.steps()
            if (metric := self._metric(step)) is not None
        ]
        return max(scored, key=lambda item: self._sign * item[1], default=None)

    def _metric(self, step: int) -> float | None:
        try:
            return self.meta(step).get("metric")
        except (OSError, ValueError):
            return None  # damaged: restoring it says so

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON facts that the checkpoint was saved with."""
        path = self.directory / str(step) / "meta" / "metadata"
        return json.loads(path.read_text())

    def find(self, which: str | int) -> int:
        """The step that "last", "best" or a number stands for.

        "best" is the last one in a run that was never evaluated.

        Raises:
          CheckpointError: no such checkpoint; the message lists those there are.
        """
        steps = self.steps()
        if which == "best" and (best := self.best()):
            return best[0]
        if which in ("best", "last") and steps:
            return steps[-1]
        if str(which).isdigit() and int(which) in steps:
            return int(which)
        raise CheckpointError(
            f"{self.run_dir} has no checkpoint {which!r}; there are {steps}"
        )

    def wait(self) -> None:
        """Return when everything is on disk, and note the best in `best.json`."""
        self._manager.wait_until_finished()
        if hosts.is_first() and (best := self.best()):
            note = json.dumps({"step": best[0], "metric": best[1]})
            (self.run_dir / "best.json").write_text(note + "\n")

    def close(self) -> None:
        """Wait, then let go of threads."""
        if not self._options.read_only:
            self.wait()
        self._manager.close()


def _write_digests(directory: pathlib.Path) -> None:
    """Digest a checkpoint's files just before the directory gets its final name."""
    if not hosts.is_first():
        return
    for path in directory.glob(_UNFINISHED):
        digests = {name: _digest(path / name) for name in _files(path)}
        (path / _DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")


def verify_files(path: pathlib.Path) -> None:
    """Compare a checkpoint's files with the digests written beside them.

    Raises:
      CheckpointError: a file is missing or its bytes have changed.
    """
    if not (path / _DIGESTS).exists():
        raise CheckpointError(f"{path} has no {_DIGESTS}")
    for name, digest in json.loads((path / _DIGESTS).read_text()).items():
        if not (path / name).exists():
            raise CheckpointError(f"{path / name} is missing")
        if _digest(path / name) != digest:
            raise CheckpointError(f"{path / name} has changed since it was written")


def _files(path: pathlib.Path) -> list[str]:
    """The files below the trees; orbax may still touch those at the top."""
    return [
        str(file.relative_to(path))
        for file in sorted(path.glob("*/**/*"))
        if file.is_file() and file.name != "commit_success.txt"
    ]


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first(error: Exception) -> str:
    """The first line of an error, for a log."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
