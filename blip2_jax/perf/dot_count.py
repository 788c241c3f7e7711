"""The matrix products of a traced function, counted from its jaxpr.

A jaxpr is what jax hands to the compiler: forward, backward and update in one list.
After dead code is taken out, the products that are left are the ones that run. Loops
count as often as they run. Scopes (flax module and method names) say whose they are.
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
    """One matrix product of the program.

    Attributes:
      flops: two per multiply-add, times the turns of the loops around it.
      scope: "/"-joined names; those of a backward pass are inside `transpose(...)`.
      shapes: of both operands.
    """

    flops: int
    scope: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def backward(self) -> bool:
        """Whether it belongs to a backward pass."""
        return "transpose(" in self.scope


def count_dots(function: Callable[..., Any], *args: Any) -> list[Dot]:
    """Every matrix product that `function(*args)` needs for its outputs.

    Args:
      function: anything that jax can trace, already jitted or not.
      *args: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.
    """
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    return jaxpr_dots(jitted.trace(*args).jaxpr)


def jaxpr_dots(closed: core.ClosedJaxpr) -> list[Dot]:
    """Every matrix product that the outputs of a traced function need."""
    alive, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return list(_walk(alive, "", 1))


def flops_by_scope(
    found: Iterable[Dot], patterns: Mapping[str, str]
) -> dict[str, tuple[int, int]]:
    """FLOPs (forward, backward) by the first pattern that is found in a scope.

    Products that no pattern matches are under "other".
    """
    sums = {name: [0, 0] for name in (*patterns, "other")}
    for dot in found:
        name = next(
            (name for name, regex in patterns.items() if re.search(regex, dot.scope)),
            "other",
        )
        sums[name][dot.backward] += dot.flops
    return {name: (forward, backward) for name, (forward, backward) in sums.items()}


def _walk(jaxpr: Any, scope: str, times: int) -> Iterator[Dot]:
    for equation in jaxpr.eqns:
        here = f"{scope}/{equation.source_info.name_stack}"
        kind = equation.primitive.name
        if kind in ("dot_general", "conv_general_dilated"):
            shapes = tuple(operand.aval.shape for operand in equation.invars)
            yield Dot(times * _flops(equation), here, shapes)
            continue
        turns = equation.params["length"] if kind == "scan" else 1
        for inner in _inner(equation):
            products = list(_walk(inner, here, times * turns))
            if products and kind in ("while", "cond", "shard_map"):
                raise NotImplementedError(f"products inside {kind} at {here}")
            yield from products


def _inner(equation: Any) -> Iterator[Any]:
    """The jaxprs that an equation runs."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _flops(equation: Any) -> int:
    """Two per multiply-add: every output element sums over the contracted ones."""
    output = math.prod(equation.outvars[0].aval.shape)
    left, right = (operand.aval.shape for operand in equation.invars[:2])
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * output * math.prod(left[axis] for axis in contracted)
    numbers = equation.params["dimension_numbers"]
    kernel = math.prod(right) // right[numbers.rhs_spec[0]]
    return 2 * output * kernel
