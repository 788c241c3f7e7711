"""What the backward pass of a step keeps of its forward pass, by the traced loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.extend.core import Literal

from blip2_jax.nn.trees import merge
from blip2_jax.parallel.sharding import batch_shards
from blip2_jax.planning.program import Program


def kept_activations(program: Program) -> int | None:
    """Bytes that one device keeps for the backward pass; None: of chunks, not counted.

    They are counted before the compiler's own choice, which may keep less or more: the
    residuals of the differentiated loss that grow with the batch and are no inputs, so
    neither parameters nor copies of them. Those of scanned layers are stacked. Each is
    taken to be divided among the devices that take rows, and whole along `tensor`.
    """
    if program.task.gradients is not None:
        return None
    once, twice = (_residuals(program, factor) for factor in (1, 2))
    growing = [size for size, larger in zip(once, twice, strict=True) if larger > size]
    return sum(growing) // batch_shards(program.mesh)


def _residuals(program: Program, factor: int) -> list[int]:
    """Bytes of each residual that is no input, the batch so many times as large."""

    def kept(trainable: Any, frozen: Any, batch: Mapping[str, Any]) -> list[jax.Array]:
        constants = jax.lax.stop_gradient(frozen)

        def loss_of(trainable: Any) -> jax.Array:
            params = merge(trainable, constants)
            return program.task.loss(params, batch, jax.random.key(0))[0]

        return jax.tree.leaves(jax.vjp(loss_of, trainable)[1])

    batch = {
        name: jax.ShapeDtypeStruct(
            (factor * entry.shape[0], *entry.shape[1:]),
            entry.dtype,
            sharding=entry.sharding,
        )
        for name, entry in program.batch.items()
    }
    with jax.set_mesh(program.mesh):
        traced = jax.make_jaxpr(kept)(program.state.trainable, program.frozen, batch)
    inputs = set(traced.jaxpr.invars)
    found = dict.fromkeys(
        variable
        for variable in traced.jaxpr.outvars
        if not isinstance(variable, Literal) and variable not in inputs
    )
    return [
        math.prod(variable.aval.shape) * variable.aval.dtype.itemsize
        for variable in found
    ]
