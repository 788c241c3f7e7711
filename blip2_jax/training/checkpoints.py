"""Checkpoints of a training run: saved asynchronously, verified when restored.

`RUN/checkpoints/STEP/` holds one Orbax tree per name (`trainable`, `optimizer`,
`carried`), `meta` (JSON) and `digests.json`, the SHA-256 of every array file. The
directory gets its final name when it is complete, so that an interrupted save leaves no
checkpoint. The last `keep` checkpoints and the best one by evaluation are kept. Frozen
weights are not stored: `RUN/sources.json` names them.

`RUN/last_checkpoint.json` has the step of the last complete checkpoint (0: none yet). A
run whose checkpoints have vanished is noticed by it.
"""

from __future__ import annotations

import dataclasses
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
from blip2_jax.parallel.files import FileFormatError, read_json, write_atomically
from blip2_jax.parallel.messages import first_line
from blip2_jax.parallel.paths import as_path
from blip2_jax.training.checkpoint_digests import (
    CheckpointError,
    DamagedCheckpoint,
    verify_files,
    write_digests,
)
from blip2_jax.training.stored_checkpoints import readable_run

PyTree = Any
logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last_checkpoint.json"
_UNFINISHED = "*.orbax-checkpoint-tmp"
_INTACT, _DAMAGED, _UNREADABLE = range(3)  # states of a checkpoint


def is_run(path: str | pathlib.Path) -> bool:
    """Return True if the path is the directory of a training run."""
    return (as_path(path) / "checkpoints").is_dir()


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
      run_dir: directory of the run; `checkpoints/` in it is created when needed. To be
        read, it may be on a store: it is copied to the user's cache.
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
        run_dir = readable_run(run_dir) if read_only else pathlib.Path(run_dir)
        self.run_dir = run_dir.absolute()
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
                post_finalization_callback=self._complete
            ),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=self._options)
        # Scores of this object's saves, whose files may not be complete yet.
        self._scores: dict[int, float | None] = {}

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
        self._wait_for_save()
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        score = {} if metric is None else {"metric": float(metric)}
        self._scores[step] = score.get("metric")
        self._manager.save(
            step,
            args=ocp.args.Composite(**items, meta=ocp.args.JsonSave({**meta, **score})),
            metrics=score or None,
        )

    def restore(self, targets: Mapping[str, PyTree]) -> Restored | None:
        """Restore the newest intact checkpoint with the shardings of the targets.

        A checkpoint whose files are missing or differ from their digests is moved to
        `RUN/damaged/` and the previous one is tried. One that cannot be read for
        another reason, which may pass, stays where it is.

        Args:
          targets: arrays or `jax.ShapeDtypeStruct`s with shardings, by tree name. The
            mesh may differ from that of the save.

        Returns:
          The contents of the checkpoint; None if the run has no checkpoint.

        Raises:
          CheckpointError: the run has checkpoints, and all of them are damaged; or the
            newest intact one cannot be read now.
        """
        steps = self.steps()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, dict(targets))
        for step in reversed(steps):
            if self._is_intact(step):
                return self._restore_intact(step, abstract)
            self._move_damaged(step)
        if steps:
            raise CheckpointError(
                f"none of the checkpoints {steps} of {self.run_dir} is intact; they "
                "are in damaged/"
            )
        return None

    def _is_intact(self, step: int) -> bool:
        """Compare a checkpoint with its digests; all processes return the same answer.

        Raises:
          CheckpointError: the files cannot be read now.
        """
        state, failure = _INTACT, None
        try:
            if hosts.is_first():
                verify_files(self.directory / str(step))
        except DamagedCheckpoint as error:
            state = _DAMAGED
            logger.error("checkpoint %d is damaged: %s", step, error)
        except Exception as error:
            state, failure = _UNREADABLE, error
        state = int(hosts.broadcast_from_first(state))
        if state == _UNREADABLE:
            raise self._unreadable(step, failure) from failure
        return state == _INTACT

    def _restore_intact(self, step: int, abstract: Mapping[str, PyTree]) -> Restored:
        """Restore a checkpoint whose bytes are right: no error here means damage.

        Raises:
          CheckpointError: one of the processes cannot read it.
        """
        restored, failure = None, None
        try:
            restored = self._restore_step(step, abstract)
        except Exception as error:
            failure = error
        if hosts.sum_over_hosts(restored is None) or restored is None:
            raise self._unreadable(step, failure) from failure
        return restored

    def _unreadable(self, step: int, failure: Exception | None) -> CheckpointError:
        """Return the error of a checkpoint that cannot be read for a passing reason."""
        reason = "another process failed" if failure is None else _describe(failure)
        path = self.directory / str(step)
        return CheckpointError(
            f"checkpoint {path} cannot be read now ({reason}). It stays where it is, "
            "and nothing was changed: give the same command again when the reason is "
            "gone. If it never goes, move this checkpoint away by hand; the run then "
            "continues from the one before"
        )

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
        if step in self._scores:
            return self._scores[step]
        try:
            return self.meta(step).get("metric")
        except (OSError, FileFormatError) as error:
            logger.warning("the score of checkpoint %d cannot be read: %s", step, error)
            return None

    def meta(self, step: int) -> dict[str, Any]:
        """Return the JSON values that the checkpoint was saved with."""
        return read_json(self.directory / str(step) / "meta" / "metadata")

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
        self._wait_for_save()
        if hosts.is_first() and (best := self.best()):
            text = json.dumps({"step": best[0], "metric": best[1]})
            write_atomically(self.run_dir / "best.json", text + "\n")

    def _complete(self) -> None:
        """Add the digests to a checkpoint before it gets its final name."""
        if hosts.is_first():
            for path in self.directory.glob(_UNFINISHED):
                write_digests(path)

    def _wait_for_save(self) -> None:
        """Wait until no save is in progress, then record the newest checkpoint."""
        # `_complete` would be too early: a kill before the final name is there would
        # leave a record of a checkpoint that does not exist.
        self._manager.wait_until_finished()
        if hosts.is_first() and (steps := self.steps()):
            mark_last(self.run_dir, steps[-1])

    def close(self) -> None:
        """Wait for pending saves and stop all threads."""
        if not self._options.read_only:
            self.wait()
        self._manager.close()


def mark_last(run_dir: pathlib.Path, step: int) -> None:
    """Record the step of the last complete checkpoint; 0 if there is none yet."""
    write_atomically(run_dir / LAST_CHECKPOINT, json.dumps({"step": step}) + "\n")


def _describe(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return f"{type(error).__name__}: {first_line(error)}"
