"""Matmuls of a traced function, counted from its jaxpr.

The jaxpr of a training step lists forward pass, backward pass and update. Dead code is
eliminated first, so that the remaining matmuls are those that run. A matmul in a loop
counts once per iteration, one in a kernel once per block. Of several branches, the one
with the most FLOPs counts. Scopes (Flax module and method names) attribute matmuls to
parts of the model.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


@dataclasses.dataclass(frozen=True)
class Dot:
    """A matmul or convolution of the program.

    Attributes:
      flops: two per multiply-add, times the iterations of enclosing loops.
      scope: names joined by "/"; those of a backward pass are inside `transpose(...)`.
      shapes: shapes of both operands.
    """

    flops: int
    scope: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def backward(self) -> bool:
        """True if the matmul belongs to a backward pass."""
        return "transpose(" in self.scope


def count_dots(function: Callable[..., Any], *args: Any) -> list[Dot]:
    """List the matmuls that `function(*args)` needs for its outputs.

    Args:
      function: a function that JAX can trace, jitted or not.
      *args: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.
    """
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    return jaxpr_dots(jitted.trace(*args).jaxpr)


def jaxpr_dots(closed: core.ClosedJaxpr) -> list[Dot]:
    """List the matmuls that the outputs of a traced function need."""
    alive, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return list(_walk(alive, "", 1))


def flops_by_scope(
    dots: Iterable[Dot], patterns: Mapping[str, str]
) -> dict[str, tuple[int, int]]:
    """Sum FLOPs (forward, backward) by the first pattern found in the scope.

    Args:
      dots: the matmuls.
      patterns: a regex of the scope for each name. Matmuls that match no pattern are
        counted as "other".
    """
    sums = {name: [0, 0] for name in (*patterns, "other")}
    for dot in dots:
        name = next(
            (name for name, regex in patterns.items() if re.search(regex, dot.scope)),
            "other",
        )
        sums[name][dot.backward] += dot.flops
    return {name: (forward, backward) for name, (forward, backward) in sums.items()}


def _walk(jaxpr: Any, scope: str, times: int) -> Iterator[Dot]:
    """Yield the matmuls of a jaxpr that runs `times` times in a scope."""
    for equation in jaxpr.eqns:
        inner_scope = f"{scope}/{equation.source_info.name_stack}"
        kind = equation.primitive.name
        if kind in ("dot_general", "conv_general_dilated"):
            shapes = tuple(operand.aval.shape for operand in equation.invars)
            yield Dot(times * _flops(equation), inner_scope, shapes)
            continue
        inner_times = times * _iterations(equation)
        branches = [
            list(_walk(inner, inner_scope, inner_times))
            for inner in _inner_jaxprs(equation)
        ]
        if kind == "while" and any(branches):
            raise NotImplementedError(
                f"cannot count matmuls inside while at {inner_scope}"
            )
        if kind == "cond":  # one branch runs; in kernels, the others do nothing
            yield from max(branches, key=lambda dots: sum(dot.flops for dot in dots))
            continue
        for dots in branches:
            yield from dots


def _iterations(equation: Any) -> int:
    """Return how often the jaxprs of an equation run, on all devices together."""
    params = equation.params
    if equation.primitive.name == "scan":
        return int(params["length"])
    if equation.primitive.name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    if equation.primitive.name == "shard_map":
        name = next(name for name in _MANUAL_AXES if name in params)
        return math.prod(params["mesh"].shape[axis] for axis in params[name])
    return 1


# What versions of jax call the axes that a shard_map runs its function along.
_MANUAL_AXES = ("newly_manual_axes", "manual_axes")


def _inner_jaxprs(equation: Any) -> Iterator[Any]:
    """Yield the jaxprs that an equation runs."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _flops(equation: Any) -> int:
    """Count two FLOPs per multiply-add: output elements times contracted elements."""
    output = math.prod(equation.outvars[0].aval.shape)
    left, right = (operand.aval.shape for operand in equation.invars[:2])
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * output * math.prod(left[axis] for axis in contracted)
    numbers = equation.params["dimension_numbers"]
    kernel = math.prod(right) // right[numbers.rhs_spec[0]]
    return 2 * output * kernel
