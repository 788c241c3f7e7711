"""One jitted training step over a mesh.

The same program on one CPU, eight GPUs or a pod: `jax.jit` with explicit shardings
and losses that are means over the global batch. Gradients are taken with respect to
the trainable part alone; the frozen part enters as a constant.
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
    """A compiled step with its mesh and layout.

    Attributes:
      mesh: over which the step runs.
      state: shardings of the `TrainState`, which the step donates.
      frozen: shardings of the frozen parameters, which it does not.
      batch: sharding of every entry of a batch.
      jitted: the function of (state, frozen, batch, replay) itself.
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
        replay: Any = None,
    ) -> tuple[TrainState, Metrics]:
        """Train on one batch.

        Args:
          state: donated.
          frozen: in the compute dtype.
          batch: global arrays (`sharding.make_global_batch`).
          replay: sampled negatives of an earlier run, in place of new draws.

        Returns:
          The new state, and replicated metrics: what the task reports, `grad_norm`
          (before clipping), `learning_rate`, and `finite` (0 where the loss or the
          gradient's norm is not).
        """
        with jax.set_mesh(self.mesh):
            return self.jitted(state, frozen, batch, replay)

    def trace(self, *args: Any) -> Any:
        """`jax.jit(...).trace` on (state, frozen, batch, replay), abstract or not."""
        with jax.set_mesh(self.mesh):
            return self.jitted.trace(*args)


def loss_and_gradients(
    task: Task,
    trainable: Mapping[str, Any],
    frozen: Mapping[str, Any],
    batch: Mapping[str, Any],
    key: jax.Array | None,
    replay: Any = None,
) -> tuple[jax.Array, Metrics, dict[str, Any]]:
    """The loss, what the task reports beside it, and d loss / d trainable."""
    frozen = jax.lax.stop_gradient(frozen)
    if task.gradients is not None:
        return task.gradients(trainable, frozen, batch, key, replay)

    def loss_of(trainable: Mapping[str, Any]) -> tuple[jax.Array, Metrics]:
        return task.loss(merge(trainable, frozen), batch, key, replay)

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
) -> TrainStep:
    """Build the step; nothing is compiled before its first call.

    Args:
      task: what is computed.
      optimizer: of the trainable part.
      schedule: only to report the learning rate.
      mesh: see `sharding.make_mesh`.
      state, frozen: arrays or their shapes; only read for the layout.
      seed: of the run; a step's key is `step_key(seed, step)`.
    """
    trim_memory_after_compiling()
    state_layout = sharding.tree_shardings(state, mesh)
    frozen_layout = sharding.tree_shardings(frozen, mesh)
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    working = sharding.compute_shardings((state.trainable, frozen), mesh)
    place = jax.lax.with_sharding_constraint

    def step(state: TrainState, frozen: Any, batch: Any, replay: Any):
        gathered, constants = place((state.trainable, frozen), working)
        loss, metrics, gradients = loss_and_gradients(
            task, gathered, constants, batch, step_key(seed, state.step), replay
        )
        gradients = place(gradients, state_layout.trainable)
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
        in_shardings=(state_layout, frozen_layout, rows, whole),
        out_shardings=(state_layout, whole),
        donate_argnums=0,
        compiler_options=low_memory_compiler_options(mesh),
    )
    return TrainStep(mesh, state_layout, frozen_layout, rows, jitted)
