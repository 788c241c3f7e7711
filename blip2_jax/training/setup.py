"""A run before its next step: all that can fail is tried before anything is written.

A new run starts from `config.init`. A directory that holds a run is continued: under
the same configuration, with the same frozen weights and the same data.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from blip2_jax.data.pipeline import TrainingBatches, training_batches
from blip2_jax.losses.hard_negatives import Negatives
from blip2_jax.nn.trees import Partition, Tree
from blip2_jax.parallel import hosts, sharding
from blip2_jax.training import frozen, initial_params, replay
from blip2_jax.training import train_config as configuration
from blip2_jax.training.checkpoints import Checkpoints
from blip2_jax.training.optimizer import make_optimizer
from blip2_jax.training.schedule import Schedule, make_schedule
from blip2_jax.training.state import TrainState, create_state
from blip2_jax.training.step import TrainStep, make_train_step
from blip2_jax.training.tasks import Task, make_task
from blip2_jax.training.train_config import ConfigError

# Maps all parameters of the model to its evaluation scores by name.
Evaluator = Callable[[PyTree], dict[str, float]]
# Builds the evaluator that `config.evaluation` describes.
EvaluatorFactory = Callable[[ConfigDict, Task], Evaluator | None]


@dataclasses.dataclass
class TrainingRun:
    """A run that is ready for its next step.

    Attributes:
      config: locked, as stored in the run's directory.
      directory: where the run lives.
      mesh: of the step.
      task: what is trained.
      train_step: compiled at its first call.
      start: steps taken so far.
      state: trainable parameters, optimizer, step.
      frozen: constants of the loss, in the compute dtype.
      carried: host arrays that only travel through checkpoints.
      batches: from `start` on.
      checkpoints: of this directory.
      evaluator: scores of all parameters; None where evaluation is off.
      negatives: by step, to be used in place of draws.
      report: lines for the user: where the parameters came from.
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
    checkpoints: Checkpoints
    evaluator: Evaluator | None
    negatives: dict[int, Negatives]
    report: list[str]

    def trees(self) -> dict[str, Tree]:
        """What a checkpoint holds, by name."""
        trees = {"trainable": self.state.trainable, "optimizer": self.state.optimizer}
        return trees | ({"carried": self.carried} if self.carried else {})


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What follows from a configuration and its devices alone: no file is opened.

    Attributes:
      config: canonical and valid.
      mesh, task, optimizer: of the run.
      shapes: of trainable and frozen parameters.
      schedule: of the learning rate.
      state: shapes of the state, that know where they live.
    """

    config: ConfigDict
    mesh: Mesh
    task: Task
    shapes: Partition
    schedule: Schedule
    optimizer: optax.GradientTransformation
    state: TrainState

    def train_step(self, frozen: Tree) -> TrainStep:
        """The step for these frozen parameters (or their shapes)."""
        return make_train_step(
            self.task,
            self.optimizer,
            self.schedule,
            self.mesh,
            self.state,
            frozen,
            seed=self.config.seed,
        )


def design(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> StepPlan:
    """Check a canonical configuration and design its step.

    Args:
      devices: all of them where absent; they need not be there.

    Raises:
      ValueError: the configuration cannot run, or its mesh or batch does not fit the
        number of devices.
    """
    configuration.validate(config)
    mesh = sharding.make_mesh(**config.mesh.to_dict(), devices=devices)
    sharding.check_batch_size(config.batch_size, mesh, config.optimizer.accumulate)
    task = make_task(config)
    shapes = initial_params.parameter_shapes(config, task)
    schedule = make_schedule(config.optimizer, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule, shapes.trainable)
    state = _abstract_state(optimizer, shapes.trainable, mesh)
    return StepPlan(config, mesh, task, shapes, schedule, optimizer, state)


@dataclasses.dataclass(frozen=True)
class _Values:
    """The part of a run that a checkpoint or `config.init` provides."""

    step: int
    state: TrainState
    carried: Tree
    report: list[str]


def set_up(
    config: ConfigDict,
    directory: pathlib.Path,
    make_evaluator: EvaluatorFactory | None = None,
) -> TrainingRun:
    """Check, open, restore or initialise; then write what a new run stores.

    Raises:
      ValueError, OSError, CheckpointError: the run cannot be; the message says why,
        and a directory that did not exist still does not.
    """
    config = configuration.canonical(config)
    continues = bool(hosts.broadcast_from_first(check_directory(config, directory)))
    made = design(config)
    mesh, task, shapes = made.mesh, made.task, made.shapes
    optimizer, target = made.optimizer, made.state

    values = restore(config, directory, target) if continues else None
    batches = open_batches(config, task, mesh, values.step if values else 0)
    evaluator = build_evaluator(config, task, make_evaluator)
    negatives = replay.read(config.replay)
    constants, manifest = initial_params.load_frozen_parameters(
        config, task, shapes.frozen, mesh
    )
    if continues:
        verify_sources(directory, manifest, batches.fingerprint)
    if values is None:
        start = initial_params.initialise(config, task, shapes.trainable, mesh)
        values = begin(start, optimizer, target)
    if not continues:
        write_run(config, directory, manifest, batches.fingerprint)
    return TrainingRun(
        config=config,
        directory=directory,
        mesh=mesh,
        task=task,
        train_step=made.train_step(constants),
        start=values.step,
        state=values.state,
        frozen=constants,
        carried=values.carried,
        batches=batches,
        checkpoints=open_checkpoints(config, directory),
        evaluator=evaluator,
        negatives=negatives,
        report=[
            _sizes(mesh, values, constants),
            *values.report,
            *(
                f"from {told['source']}: {note}"
                for told in manifest.values()
                for note in told.get("notes", ())
            ),
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


def check_directory(config: ConfigDict, directory: pathlib.Path) -> bool:
    """Whether the directory holds this very run, to be continued.

    Raises:
      ConfigError: it holds another run, or something that is no run.
    """
    if (directory / "config.json").exists():
        configuration.check_same_run(configuration.read_config(directory), config)
        return True
    if (directory / "checkpoints").exists():
        raise ConfigError(f"{directory} has checkpoints but no config.json")
    return False


def open_checkpoints(config: ConfigDict, directory: pathlib.Path) -> Checkpoints:
    """The run's checkpoints, for reading and writing."""
    return Checkpoints(
        directory, keep=config.checkpoint.keep, mode=config.evaluation.mode
    )


def restore(
    config: ConfigDict, directory: pathlib.Path, target: TrainState
) -> _Values | None:
    """The newest intact checkpoint; None where a run was stopped before its first."""
    checkpoints = open_checkpoints(config, directory)
    try:
        found = checkpoints.restore(
            {"trainable": target.trainable, "optimizer": target.optimizer}
        )
        if found is None:
            return None
        carried = checkpoints.read(found.step, ("carried",)).trees.get("carried", {})
    finally:
        checkpoints.close()
    step = sharding.shard_tree(np.int32(found.step), target.step.sharding)
    state = TrainState(step, found.trees["trainable"], found.trees["optimizer"])
    return _Values(
        found.step, state, carried, [f"continued from checkpoint {found.step}"]
    )


def begin(
    start: initial_params.InitialParams,
    optimizer: optax.GradientTransformation,
    target: TrainState,
) -> _Values:
    """The state before the first step, laid out as the target is."""
    layout = jax.tree.map(lambda leaf: leaf.sharding, target)
    create = lambda trainable: create_state(trainable, optimizer)
    state = jax.jit(create, out_shardings=layout)(start.trainable)
    return _Values(0, state, start.carried, start.report)


def open_batches(
    config: ConfigDict, task: Task, mesh: Mesh, start: int
) -> TrainingBatches:
    """The training stream of this process, from a step on."""
    return training_batches(
        config.data,
        task.batch_format,
        seed=config.seed,
        batch_size=config.batch_size,
        start_step=start,
        own_rows=sharding.local_rows(config.batch_size, mesh).tolist(),
    )


def write_run(
    config: ConfigDict, directory: pathlib.Path, manifest: Any, fingerprint: Any
) -> None:
    """Make the run's directory: `sources.json`, then `config.json`."""
    hosts.barrier("every process is ready")
    if hosts.is_first():
        directory.mkdir(parents=True, exist_ok=True)
        sources = {"frozen": manifest, "data": fingerprint}
        (directory / "sources.json").write_text(json.dumps(sources, indent=1) + "\n")
        configuration.write_config(directory, config)
    hosts.barrier("the run is written")


def verify_sources(
    directory: pathlib.Path, manifest: frozen.Manifest, fingerprint: Any
) -> None:
    """Refuse to continue with other frozen weights or other data.

    Raises:
      WeightsError: naming the arrays that differ.
      ConfigError: naming the sources that differ.
    """
    stored = frozen.read_sources(directory)
    frozen.verify_manifest(stored["frozen"], manifest)
    found = json.loads(json.dumps(fingerprint))
    for before, now in zip(stored["data"], found, strict=True):
        if before != now:
            raise ConfigError(f"the data of this run was {before}, is now {now}")


def _sizes(mesh: Mesh, values: _Values, constants: Tree) -> str:
    """One line: devices and parameters."""
    parts = {
        "trainable": values.state.trainable,
        "frozen": constants,
        "carried": values.carried,
    }
    counts = ", ".join(
        f"{sum(leaf.size for leaf in jax.tree.leaves(tree)):,} {name}"
        for name, tree in parts.items()
    )
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return f"{mesh.size} {mesh.devices.flat[0].device_kind} ({axes}); {counts}"


def _abstract_state(
    optimizer: optax.GradientTransformation, trainable: Tree, mesh: Mesh
) -> TrainState:
    """Shapes of the state, that know where they live."""
    state = jax.eval_shape(lambda tree: create_state(tree, optimizer), trainable)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place
        ),
        state,
        sharding.tree_shardings(state, mesh),
    )
