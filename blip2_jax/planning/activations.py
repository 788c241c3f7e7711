"""Size of the activations that the forward pass stores for the backward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.extend.core import Literal

from blip2_jax.nn.trees import merge
from blip2_jax.parallel.sharding import batch_shards
from blip2_jax.planning.program import Program
from blip2_jax.training.tasks import Task


def kept_activations(program: Program) -> int | None:
    """Compute the bytes that one device stores for the backward pass.

    Counts the residuals of the traced loss that grow with the batch and are not inputs,
    which leaves out parameters and copies of them. Residuals of scanned layers are
    stacked. Every residual is assumed to be sharded by rows and replicated along the
    `tensor` axis. The compiler may store less or more than this.

    Returns:
      Bytes, or None for a task that computes its gradients in chunks.
    """
    if program.task.gradients is not None:
        return None
    args = program.task, program.state.trainable, program.frozen, program.batch
    with jax.set_mesh(program.mesh):
        return growing_residuals(*args) // batch_shards(program.mesh)


def growing_residuals(
    task: Task, trainable: Any, frozen: Any, batch: Mapping[str, jax.ShapeDtypeStruct]
) -> int:
    """Compute the bytes of a loss's residuals that grow with its batch.

    Args:
      task: the task; its loss is traced.
      trainable: shapes of the trained parameters.
      frozen: shapes of the frozen parameters.
      batch: shapes of a batch.
    """
    once, twice = (
        _residuals(task, trainable, frozen, batch, factor) for factor in (1, 2)
    )
    return sum(n for n, larger in zip(once, twice, strict=True) if larger > n)


def _residuals(
    task: Task, trainable: Any, frozen: Any, batch: Mapping[str, Any], factor: int
) -> list[int]:
    """List the bytes of every residual that is not an input, at `factor` x batch."""

    def residuals_of(
        trainable: Any, frozen: Any, batch: Mapping[str, Any]
    ) -> list[jax.Array]:
        constants = jax.lax.stop_gradient(frozen)

        def loss_of(trainable: Any) -> jax.Array:
            params = merge(trainable, constants)
            return task.loss(params, batch, jax.random.key(0))[0]

        return jax.tree.leaves(jax.vjp(loss_of, trainable)[1])

    larger = {
        name: jax.ShapeDtypeStruct(
            (factor * entry.shape[0], *entry.shape[1:]),
            entry.dtype,
            sharding=entry.sharding,
        )
        for name, entry in batch.items()
    }
    traced = jax.make_jaxpr(residuals_of)(trainable, frozen, larger)
    inputs = set(traced.jaxpr.invars)
    residuals = dict.fromkeys(
        variable
        for variable in traced.jaxpr.outvars
        if not isinstance(variable, Literal) and variable not in inputs
    )
    return [
        math.prod(variable.aval.shape) * variable.aval.dtype.itemsize
        for variable in residuals
    ]
