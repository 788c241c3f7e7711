"""The plan of a training step, from configuration and devices alone.

No file is opened and no array is made, so that a step can be planned for devices that
are not there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blip2_jax.models.sizes import ViTConfig
from blip2_jax.nn.trees import Partition, Tree
from blip2_jax.parallel import sharding
from blip2_jax.training import initial_params
from blip2_jax.training import train_config as configuration
from blip2_jax.training.optimizer import make_optimizer
from blip2_jax.training.schedule import Schedule, make_schedule
from blip2_jax.training.state import TrainState, create_state
from blip2_jax.training.step import TrainStep, make_train_step
from blip2_jax.training.tasks import Task, make_task, model_config

# Chips; libtpu refuses `jax.lax.ragged_all_to_all` on larger slices of v5e.
MAX_RAGGED_V5E = 16


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """The parts of a run that follow from configuration and devices, without files.

    Attributes:
      config: a valid, canonical configuration.
      mesh: mesh of the step.
      task: the task.
      shapes: shapes of trainable and frozen parameters.
      schedule: learning rate by step.
      optimizer: optimizer of the trainable parameters.
      state: shapes and shardings of the state.
    """

    config: ConfigDict
    mesh: Mesh
    task: Task
    shapes: Partition
    schedule: Schedule
    optimizer: optax.GradientTransformation
    state: TrainState

    def train_step(self, frozen: Tree) -> TrainStep:
        """Build the step for frozen parameters or their shapes."""
        return make_train_step(
            self.task,
            self.optimizer,
            self.schedule,
            self.mesh,
            self.state,
            frozen,
            seed=self.config.seed,
            shard_over_data=self.config.optimizer.sharded,
        )


def plan_step(
    config: ConfigDict, devices: Sequence[jax.Device] | None = None
) -> StepPlan:
    """Check a configuration and plan its step.

    Args:
      config: a canonical configuration.
      devices: devices of the mesh, which may be abstract; by default all devices.

    Raises:
      ValueError: the configuration is invalid, or its mesh or batch size does not fit
        the number of devices.
    """
    configuration.validate(config)
    mesh = sharding.make_mesh(**config.mesh.to_dict(), devices=devices)
    sharding.check_batch_size(config.batch_size, mesh, config.optimizer.accumulate)
    check_shards(config)
    task = make_task(_with_exchange(config, mesh))
    shapes = initial_params.parameter_shapes(config, task)
    schedule = make_schedule(config.optimizer, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule, shapes.trainable)
    state = _abstract_state(optimizer, shapes.trainable, mesh, config.optimizer.sharded)
    return StepPlan(config, mesh, task, shapes, schedule, optimizer, state)


def check_shards(config: ConfigDict) -> None:
    """Check that `objective.num_shards` divides the rows of every loss.

    Raises:
      ConfigError: it does not.
    """
    objective, batch = config.objective, config.batch_size
    shards = objective.get("num_shards", 1)
    for name in ("itm", "itg"):
        every = objective.get(f"{name}_every", 1)
        rows = -(-batch // every)
        if objective.get(f"{name}_weight", 1.0) and rows % shards:
            which = f" with config.objective.{name}_every={every}" if every > 1 else ""
            raise configuration.ConfigError(
                f"config.objective.num_shards is {shards}; it must divide the {rows} "
                f"rows of a loss that config.batch_size={batch}{which} gives"
            )


def check_image_size(config: ConfigDict, task: Task) -> None:
    """Check that the images of a run have the size that its image encoder takes.

    Raises:
      ConfigError: the sizes differ.
    """
    if task.model is None:
        return
    vision, size = model_config(config.model).vision, config.data.image.size
    if isinstance(vision, ViTConfig) and size != vision.image_size:
        raise configuration.ConfigError(
            f"config.data.image.size is {size}; it must be {vision.image_size}, the "
            "image_size of the model's vision (config.model.overrides.vision)"
        )


def choose_exchange(mesh: Mesh) -> str:
    """Choose the exchange with the least traffic that the devices of a mesh have."""
    device = mesh.devices.flat[0]
    if device.platform != "tpu":
        return "ring"
    if sharding.count_slices(list(mesh.devices.flat)) > 1:
        return "grid"
    is_v5e = device.device_kind == "TPU v5 lite"
    return "grid" if is_v5e and mesh.size > MAX_RAGGED_V5E else "ragged"


def negatives_exchange(config: ConfigDict, mesh: Mesh) -> str:
    """Return how devices exchange the images of negatives (`parallel.row_gather`)."""
    return config.objective.get("exchange") or choose_exchange(mesh)


def _with_exchange(config: ConfigDict, mesh: Mesh) -> ConfigDict:
    """Return a stage-1 configuration with its exchange filled in."""
    if config.task != "stage1":
        return config
    config = config.copy_and_resolve_references().unlock()
    config.objective.exchange = negatives_exchange(config, mesh)
    return config.lock()


def _abstract_state(
    optimizer: optax.GradientTransformation,
    trainable: Tree,
    mesh: Mesh,
    over_data: bool,
) -> TrainState:
    """Return shapes and shardings of the state."""
    state = jax.eval_shape(lambda tree: create_state(tree, optimizer), trainable)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        state,
        sharding.tree_shardings(state, mesh, over_data),
    )
