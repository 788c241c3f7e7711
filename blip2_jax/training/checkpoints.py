"""Checkpoints of a training run: saved asynchronously, verified when restored.

`RUN/checkpoints/STEP/` holds one Orbax tree per name (`trainable`, `optimizer`,
`carried`), `meta` (JSON) and `digests.json`, the SHA-256 of every array file. The
directory gets its final name when it is complete, so that an interrupted save leaves no
checkpoint. The last `keep` checkpoints and the best one by evaluation are kept. Frozen
weights are not stored: `RUN/sources.json` names them.
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
    """A checkpoint is missing or damaged; the message says which one and why."""


def parse_checkpoint(text: str) -> str | int:
    """Return a checkpoint's step as a number, and "best" and "last" as they are."""
    return int(text) if text.isdigit() else text


@dataclasses.dataclass(frozen=True)
class Restored:
    """Contents of a checkpoint.

    Attributes:
      step: number of steps taken.
      trees: the trees by name.
      meta: the JSON values passed to `Checkpoints.save`.
    """

    step: int
    trees: dict[str, PyTree]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
      run_dir: directory of the run; `checkpoints/` in it is created when needed.
      keep: number of newest checkpoints to keep, besides the best one.
      mode: "max" or "min": whether a higher or a lower metric is better.
      read_only: never write or clean up.
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
        """Return the steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        trees: Mapping[str, PyTree],
        meta: Mapping[str, Any],
        metric: float | None = None,
    ) -> None:
        """Start to save; return when the arrays are copied from the devices.

        An existing checkpoint of the step is left unchanged. An error of the previous
        save is raised here.

        Args:
          step: number of steps taken.
          trees: trees of arrays by name.
          meta: JSON values to store.
          metric: the evaluation score, if the step was evaluated.
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
        """Restore the newest intact checkpoint with the shardings of the targets.

        A damaged checkpoint is moved to `RUN/damaged/` and the previous one is tried.

        Args:
          targets: arrays or `jax.ShapeDtypeStruct`s with shardings, by tree name. The
            mesh may differ from that of the save.

        Returns:
          The contents of the checkpoint; None if the run has no checkpoint.

        Raises:
          CheckpointError: the run has checkpoints, and all of them are damaged.
        """
        steps = self.steps()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(targets))
        for step in reversed(steps):
            restored = self._try_restore(step, abstract)
            if restored is not None:
                return restored
            self._move_damaged(step)
        if steps:
            raise CheckpointError(
                f"none of the checkpoints {steps} of {self.run_dir} can be read; "
                "they are in damaged/"
            )
        return None

    def _try_restore(
        self, step: int, abstract: Mapping[str, PyTree]
    ) -> Restored | None:
        """Restore a checkpoint; None in every process if one of them cannot read it."""
        restored, failure = None, None
        try:
            if hosts.is_first():
                verify_files(self.directory / str(step))
        except Exception as error:
            failure = error
        if hosts.broadcast_from_first(failure is None):
            try:
                restored = self._restore_step(step, abstract)
            except Exception as error:
                failure = error
        if failure is not None:
            logger.error("checkpoint %d cannot be read: %s", step, _first_line(failure))
        return None if hosts.sum_over_hosts(restored is None) else restored

    def _restore_step(self, step: int, abstract: Mapping[str, PyTree]) -> Restored:
        items = {
            name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()
        }
        values = self._manager.restore(
            step, args=ocp.args.Composite(**items, meta=ocp.args.JsonRestore())
        )
        return Restored(step, {name: values[name] for name in items}, values["meta"])

    def _move_damaged(self, step: int) -> None:
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
        """Read trees as nested dicts of numpy arrays, without targets.

        Args:
          step: step of the checkpoint.
          names: names of the trees; those that the checkpoint lacks are skipped.

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
        """Return step and metric of the best evaluated checkpoint, or None."""
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
            return None  # damaged; `restore` reports it

    def meta(self, step: int) -> dict[str, Any]:
        """Return the JSON values that the checkpoint was saved with."""
        path = self.directory / str(step) / "meta" / "metadata"
        return json.loads(path.read_text())

    def find(self, which: str | int) -> int:
        """Return the step of the checkpoint "last", "best" or of a given number.

        In a run without evaluation, "best" is the last one.

        Raises:
          CheckpointError: it does not exist; the message lists the existing ones.
        """
        steps = self.steps()
        if which == "best" and (best := self.best()):
            return best[0]
        if which in ("best", "last") and steps:
            return steps[-1]
        if str(which).isdigit() and int(which) in steps:
            return int(which)
        raise CheckpointError(
            f"{self.run_dir} has no checkpoint {which!r}; it has {steps}"
        )

    def wait(self) -> None:
        """Wait until saves are complete, then write the best step to `best.json`."""
        self._manager.wait_until_finished()
        if hosts.is_first() and (best := self.best()):
            text = json.dumps({"step": best[0], "metric": best[1]})
            (self.run_dir / "best.json").write_text(text + "\n")

    def close(self) -> None:
        """Wait for pending saves and stop all threads."""
        if not self._options.read_only:
            self.wait()
        self._manager.close()


def _write_digests(directory: pathlib.Path) -> None:
    """Write the digests of a checkpoint before the directory gets its final name."""
    if not hosts.is_first():
        return
    for path in directory.glob(_UNFINISHED):
        digests = {name: _digest(path / name) for name in _files(path)}
        (path / _DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")


def verify_files(path: pathlib.Path) -> None:
    """Compare the files of a checkpoint with their stored digests.

    Raises:
      CheckpointError: a file is missing or has changed.
    """
    if not (path / _DIGESTS).exists():
        raise CheckpointError(f"{path} has no {_DIGESTS}")
    for name, digest in json.loads((path / _DIGESTS).read_text()).items():
        if not (path / name).exists():
            raise CheckpointError(f"{path / name} is missing")
        if _digest(path / name) != digest:
            raise CheckpointError(f"{path / name} has changed since it was written")


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


def _first_line(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
