"""Set-up of a run. Everything that can fail is checked before anything is written.

A new run starts from `config.init`. A run that the directory holds is continued, if its
configuration, frozen weights and data are the same.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from blip2_jax.data.pipeline import TrainingBatches, training_batches
from blip2_jax.data.sources.base import feature_origins
from blip2_jax.losses.hard_negatives import Negatives
from blip2_jax.nn.trees import Tree
from blip2_jax.parallel import hosts, sharding
from blip2_jax.parallel.row_gather import verify_exchange
from blip2_jax.training import (
    cached_features,
    frozen,
    initial_params,
    lora,
    replay,
    run_directory,
)
from blip2_jax.training.checkpoints import Checkpoints
from blip2_jax.training.hub_names import pin_hub_names
from blip2_jax.training.run_lock import RunLock
from blip2_jax.training.same_data import verify_data
from blip2_jax.training.state import TrainState, create_state
from blip2_jax.training.step import TrainStep
from blip2_jax.training.step_plan import (
    check_image_size,
    negatives_exchange,
    plan_step,
)
from blip2_jax.training.tasks import Task, model_config
from blip2_jax.training.text_limits import check_texts
from blip2_jax.training.train_config import ConfigError


class Evaluation(NamedTuple):
    """An evaluation during training: scores by name, and a few examples to show."""

    scores: dict[str, float]
    samples: Sequence[Mapping[str, Any]] = ()


# Maps all parameters of the model to their evaluation.
Evaluator = Callable[[PyTree], Evaluation]
# Builds the evaluator that `config.evaluation` describes.
EvaluatorFactory = Callable[[ConfigDict, Task], Evaluator | None]


@dataclasses.dataclass
class TrainingRun:
    """A run that is ready for its next step.

    Attributes:
      config: the locked configuration, as stored in the directory.
      directory: directory of the run.
      mesh: mesh of the step.
      task: the task.
      train_step: the step; compiled at its first call.
      start: number of steps taken so far.
      state: trainable parameters, optimizer state and step.
      frozen: frozen parameters in the compute dtype.
      carried: host arrays that only checkpoints hold.
      batches: training batches, from `start` on.
      broken_before: number of broken samples of each source before `start`.
      checkpoints: checkpoints of the directory.
      evaluator: maps all parameters to scores; None without evaluation.
      negatives: replayed negatives by step.
      reads_features: the batches hold features of images, not images.
      report: lines for the user: devices, sizes, and the origin of the parameters.
    """

    config: ConfigDict
    directory: pathlib.Path
    mesh: Mesh
    task: Task
    train_step: TrainStep
    start: int
    state: TrainState
    frozen: Tree
    carried: Tree
    batches: TrainingBatches
    broken_before: list[int]
    checkpoints: Checkpoints
    evaluator: Evaluator | None
    negatives: dict[int, Negatives]
    reads_features: bool
    report: list[str]

    def parameters(self) -> Tree:
        """Return all parameters of the model, as evaluation reads them."""
        trainable = self.state.trainable
        if self.config.optimizer.sharded:
            layout = sharding.tree_shardings(trainable, self.mesh)
            trainable = jax.jit(lambda tree: tree, out_shardings=layout)(trainable)
        return lora.merge_parameters(self.config, trainable, self.frozen)

    def trees(self) -> dict[str, Tree]:
        """Return the trees that a checkpoint holds, by name."""
        trees = {"trainable": self.state.trainable, "optimizer": self.state.optimizer}
        return trees | ({"carried": self.carried} if self.carried else {})


@dataclasses.dataclass(frozen=True)
class _StartValues:
    """The part of a run that comes from a checkpoint or from `config.init`."""

    step: int
    state: TrainState
    carried: Tree
    report: list[str]
    broken: dict[str, int] = dataclasses.field(default_factory=dict)


def set_up(
    config: ConfigDict,
    directory: pathlib.Path,
    make_evaluator: EvaluatorFactory | None = None,
    *,
    lock: RunLock | None = None,
    restart: bool = False,
) -> TrainingRun:
    """Set up a run: check it, restore or initialise it, then write its directory.

    Args:
      config: configuration of the run.
      directory: directory of the run.
      make_evaluator: see `train`.
      lock: of the directory, acquired if that exists; None: the caller sees to it that
        no other process uses the directory.
      restart: set a run that the directory holds aside and begin anew.

    Raises:
      ValueError, OSError, CheckpointError: the run cannot start; the message says why.
        A directory that did not exist is not created.
      RunLocked: another process began a run in the directory in the meantime.
    """
    recorded = {} if restart else frozen.recorded_hub_names(directory)
    config, hub_names = pin_hub_names(config, recorded)
    holds_run = not restart and run_directory.check_directory(config, directory)
    continues = bool(hosts.broadcast_from_first(holds_run))
    plan = plan_step(config)
    mesh, task, shapes = plan.mesh, plan.task, plan.shapes
    optimizer, target = plan.optimizer, plan.state
    if config.task == "stage1":
        verify_exchange(mesh, negatives_exchange(config, mesh))

    values = restore(config, directory, target) if continues else None
    batches = open_batches(config, task, mesh, values.step if values else 0)
    origins = feature_origins(batches.sources)
    cached_features.check_trainable(origins, shapes.trainable)
    evaluator = build_evaluator(config, task, make_evaluator)
    negatives = replay.read(config.replay)
    replay.check_replay(config, negatives, values.step if values else 0)
    unused = cached_features.unused_prefixes(config, origins)
    if batches.image_key == "image" or (origins and not unused):
        check_image_size(config, task)
    frozen_params, manifest = initial_params.load_frozen_parameters(
        config, task, shapes.frozen, mesh, unused
    )
    cached_features.check_encoder(
        [*origins, *cached_features.evaluation_origins(config)],
        model_config(config.model).vision,
        manifest,
        config.frozen_sources.vision,
    )
    notes: list[str] = []
    if continues:
        notes = verify_sources(directory, manifest, batches.fingerprint)
    if values is None:
        start = initial_params.initialise(config, task, shapes.trainable, mesh)
        values = begin(start, optimizer, target)
    if not continues:
        sources = {"frozen": manifest, "data": batches.fingerprint, "hub": hub_names}
        run_directory.write_run(config, directory, sources, lock, restart)
    return TrainingRun(
        config=config,
        directory=directory,
        mesh=mesh,
        task=task,
        train_step=plan.train_step(frozen_params),
        start=values.step,
        state=values.state,
        frozen=frozen_params,
        carried=values.carried,
        batches=batches,
        broken_before=[values.broken.get(name, 0) for name in batches.source_names],
        checkpoints=open_checkpoints(config, directory),
        evaluator=evaluator,
        negatives=negatives,
        reads_features=batches.image_key == "features",
        report=[
            *_report(mesh, values, frozen_params, manifest),
            *cached_features.describe(origins, unused),
            *notes,
        ],
    )


def build_evaluator(
    config: ConfigDict, task: Task, make_evaluator: EvaluatorFactory | None
) -> Evaluator | None:
    """Build the evaluator of a run; None if `config.evaluation.every` is 0.

    Raises:
      ConfigError: the configuration asks for evaluation, but there is no factory.
      ValueError, FileNotFoundError: see `evaluation.evaluators.make_evaluator`.
    """
    every = config.evaluation.every
    if not every:
        return None
    if make_evaluator is None:
        raise ConfigError(
            f"config.evaluation.every is {every}, but this program was given no "
            "evaluator: pass make_evaluator=evaluation.evaluators.make_evaluator to "
            "train(), or set config.evaluation.every=0"
        )
    return make_evaluator(config, task)


def open_checkpoints(config: ConfigDict, directory: pathlib.Path) -> Checkpoints:
    """Open the checkpoints of a run for reading and writing."""
    return Checkpoints(
        directory, keep=config.checkpoint.keep, mode=config.evaluation.mode
    )


def restore(
    config: ConfigDict, directory: pathlib.Path, target: TrainState
) -> _StartValues | None:
    """Restore the newest intact checkpoint; None if the run has not saved one yet.

    Raises:
      CheckpointError: there is no usable checkpoint, but there was one.
    """
    checkpoints = open_checkpoints(config, directory)
    try:
        restored = checkpoints.restore(
            {"trainable": target.trainable, "optimizer": target.optimizer}
        )
        if restored is None:
            run_directory.check_untrained(directory)
            return None
        carried = checkpoints.read(restored.step, ("carried",)).trees.get("carried", {})
    finally:
        checkpoints.close()
    step = sharding.shard_tree(np.int32(restored.step), target.step.sharding)
    state = TrainState(step, restored.trees["trainable"], restored.trees["optimizer"])
    return _StartValues(
        restored.step,
        state,
        carried,
        [f"continued from checkpoint {restored.step}"],
        restored.meta.get("broken_samples", {}),  # older checkpoints have none
    )


def begin(
    start: initial_params.InitialParams,
    optimizer: optax.GradientTransformation,
    target: TrainState,
) -> _StartValues:
    """Create the state before the first step, with the shardings of the target."""
    layout = jax.tree.map(lambda leaf: leaf.sharding, target)
    create = lambda trainable: create_state(trainable, optimizer)
    state = jax.jit(create, out_shardings=layout)(start.trainable)
    return _StartValues(0, state, start.carried, start.report)


def open_batches(
    config: ConfigDict, task: Task, mesh: Mesh, start: int
) -> TrainingBatches:
    """Open the training batches of this process, from a step on."""
    check_texts(config, task)
    return training_batches(
        config.data,
        task.batch_format,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=start,
        own_rows=sharding.local_rows(config.batch_size, mesh).tolist(),
    )


def verify_sources(
    directory: pathlib.Path, manifest: frozen.Manifest, fingerprint: Any
) -> list[str]:
    """Check that frozen weights and data are those that the run began with.

    Returns:
      Lines for the user.

    Raises:
      WeightsError: frozen arrays differ; the message names them.
      ConfigError: a data source differs; the message names it.
    """
    stored = frozen.read_sources(directory)
    frozen.verify_manifest(stored["frozen"], manifest)
    return verify_data(stored["data"], fingerprint)


def _report(
    mesh: Mesh, values: _StartValues, frozen_params: Tree, manifest: frozen.Manifest
) -> list[str]:
    """Return lines on devices, parameter counts and the origin of the parameters."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    parts = {
        "trainable": values.state.trainable,
        "frozen": frozen_params,
        "carried": values.carried,
    }
    counts = ", ".join(
        f"{sum(leaf.size for leaf in jax.tree.leaves(tree)):,} {name}"
        for name, tree in parts.items()
        if tree
    )
    notes = [
        f"from {entry['source']}: {note}"
        for entry in manifest.values()
        for note in entry.get("notes", ())
    ]
    return [
        f"devices: {mesh.size} x {mesh.devices.flat[0].device_kind}, mesh {axes}",
        f"parameters: {counts}",
        *values.report,
        *notes,
    ]
