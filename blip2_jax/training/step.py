"""The jitted training step.

The program is the same on one CPU, eight GPUs or a pod: `jax.jit` with explicit
shardings, and losses that are means over the global batch. Gradients are taken with
respect to the trainable parameters; frozen parameters enter as constants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from blip2_jax.nn.trees import merge
from blip2_jax.parallel import sharding
from blip2_jax.parallel.host_memory import (
    low_memory_compiler_options,
    trim_memory_after_compiling,
)
from blip2_jax.training.schedule import Schedule
from blip2_jax.training.state import TrainState, step_key
from blip2_jax.training.tasks import Task

Metrics = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A jitted step with its mesh and shardings.

    Attributes:
      mesh: the mesh that the step runs on.
      state: shardings of the `TrainState`, which the step donates.
      frozen: shardings of the frozen parameters, which it does not donate.
      batch: sharding of every array of a batch.
      jitted: the jitted function of (state, frozen, batch, negatives).
    """

    mesh: Mesh
    state: TrainState
    frozen: Any
    batch: jax.sharding.NamedSharding
    jitted: Any

    def __call__(
        self,
        state: TrainState,
        frozen: Mapping[str, Any],
        batch: Mapping[str, jax.Array],
        negatives: Any = None,
    ) -> tuple[TrainState, Metrics]:
        """Train on one batch.

        Args:
          state: donated.
          frozen: in the compute dtype.
          batch: global arrays (`sharding.make_global_batch`).
          negatives: negatives of an earlier run, used instead of sampled ones.

        Returns:
          The new state and replicated metrics: those of the task, `grad_norm` (before
          clipping), `learning_rate`, and `finite` (0 if the loss or the gradient norm
          is not finite).
        """
        with jax.set_mesh(self.mesh):
            return self.jitted(state, frozen, batch, negatives)

    def trace(self, *args: Any) -> Any:
        """Trace the step; the arguments are arrays or `jax.ShapeDtypeStruct`s."""
        with jax.set_mesh(self.mesh):
            return self.jitted.trace(*args)


def loss_and_gradients(
    task: Task,
    trainable: Mapping[str, Any],
    frozen: Mapping[str, Any],
    batch: Mapping[str, Any],
    key: jax.Array | None,
    negatives: Any = None,
) -> tuple[jax.Array, Metrics, dict[str, Any]]:
    """Compute the loss of a task, its metrics and d loss / d trainable."""
    frozen = jax.lax.stop_gradient(frozen)
    if task.gradients is not None:
        return task.gradients(trainable, frozen, batch, key, negatives)

    def loss_of(trainable: Mapping[str, Any]) -> tuple[jax.Array, Metrics]:
        return task.loss(merge(trainable, frozen), batch, key, negatives=negatives)

    (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
    return loss, metrics, gradients


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    mesh: Mesh,
    state: TrainState,
    frozen: Mapping[str, Any],
    *,
    seed: int,
    shard_over_data: bool = False,
) -> TrainStep:
    """Build the training step. It is compiled at its first call.

    Args:
      task: the task.
      optimizer: optimizer of the trainable parameters.
      schedule: learning rate by step; only reported.
      mesh: from `sharding.make_mesh`.
      state: arrays or their shapes; only used for shardings.
      frozen: likewise.
      seed: seed of the run; the key of a step is `step_key(seed, step)`.
      shard_over_data: the state is split over the axis `data` too: every device updates
        its part of the parameters, and gathers the rest before a step.
    """
    trim_memory_after_compiling()
    state_layout = sharding.tree_shardings(state, mesh, shard_over_data)
    frozen_layout = sharding.tree_shardings(frozen, mesh)
    batch_sharding = sharding.batch_sharding(mesh)
    replicated = sharding.replicated(mesh)
    compute_layout = sharding.compute_shardings((state.trainable, frozen), mesh)
    constrain = jax.lax.with_sharding_constraint

    def step(state: TrainState, frozen: Any, batch: Any, negatives: Any):
        gathered, constants = constrain((state.trainable, frozen), compute_layout)
        loss, metrics, gradients = loss_and_gradients(
            task, gathered, constants, batch, step_key(seed, state.step), negatives
        )
        gradients = constrain(gradients, state_layout.trainable)
        updates, optimizer_state = optimizer.update(
            gradients, state.optimizer, state.trainable
        )
        norm = optax.global_norm(gradients)
        metrics = metrics | {
            "grad_norm": norm,
            "learning_rate": schedule(state.step),
            "finite": (jnp.isfinite(loss) & jnp.isfinite(norm)).astype(jnp.float32),
        }
        trainable = optax.apply_updates(state.trainable, updates)
        return TrainState(state.step + 1, trainable, optimizer_state), metrics

    jitted = jax.jit(
        step,
        in_shardings=(state_layout, frozen_layout, batch_sharding, replicated),
        out_shardings=(state_layout, replicated),
        donate_argnums=0,
        compiler_options=low_memory_compiler_options(mesh),
    )
    return TrainStep(mesh, state_layout, frozen_layout, batch_sharding, jitted)
