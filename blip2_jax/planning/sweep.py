"""A small grid of batches, remat policies and meshes, and the best that fits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from ml_collections import ConfigDict

from blip2_jax.models.stack import REMAT_POLICIES
from blip2_jax.planning.plan import Plan, make_plan
from blip2_jax.planning.report import describe, report, table
from blip2_jax.planning.topology import Topology

AXES = ("batch", "remat", "mesh")
_FSDP = 8  # devices among which parameters are divided, where it is neither 1 nor all


def parse_axes(text: str) -> tuple[str, ...]:
    """"batch,remat" as names.

    Raises:
      ValueError: a name that is none of `AXES`.
    """
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in AXES:
            raise ValueError(f"cannot sweep {name!r}; there are {', '.join(AXES)}")
    return names


def candidates(
    config: ConfigDict, devices: int, axes: Sequence[str]
) -> Iterator[ConfigDict]:
    """The grid, the configuration's own values first on every axis.

    Batches: the nearest that divide, below and above, and half of them. Meshes: no
    division of parameters, division among 8 devices and among all, 2 halves of every
    matrix.
    """
    meshes = [_own_mesh(config, devices)]
    if "mesh" in axes:
        options = [(1, 1), (_FSDP, 1), (devices, 1), (_FSDP, 2)]
        meshes += [
            (devices // (fsdp * tensor), fsdp, tensor)
            for fsdp, tensor in options
            if devices % (fsdp * tensor) == 0
        ]
    policies = [config.model.remat, *(REMAT_POLICIES if "remat" in axes else ())]
    for mesh, remat in itertools.product(
        dict.fromkeys(meshes), dict.fromkeys(policies)
    ):
        for batch in _batches(config.batch_size, mesh[0] * mesh[1], "batch" in axes):
            candidate = config.copy_and_resolve_references().unlock()
            candidate.batch_size, candidate.model.remat = batch, remat
            for name, size in zip(("data", "fsdp", "tensor"), mesh, strict=True):
                candidate.mesh[name] = size
            yield candidate.lock()


def sweep(
    config: ConfigDict,
    topology: Topology,
    axes: Sequence[str],
    utilisation: float = 0.4,
    tell: Callable[[Plan], None] = lambda plan: None,
) -> list[Plan]:
    """Plan every candidate; those too large by their arguments are not compiled.

    Args:
      config, topology, utilisation: see `make_plan`.
      axes: what varies, of `AXES`.
      tell: hears of each plan as it is made.
    """
    plans = []
    for candidate in candidates(config, len(topology.devices), axes):
        plan = make_plan(candidate, topology, utilisation, only_arguments=True)
        tell(plan)
        plans.append(plan)
    return plans


def best(plans: Sequence[Plan]) -> Plan | None:
    """Of those that fit, the most images/s/chip; then the least sent, the least held.

    Rates within one per cent of each other count as equal.
    """
    fitting = [plan for plan in plans if plan.fits and plan.estimate is not None]
    if not fitting:
        return None
    fastest = max(_rate(plan) for plan in fitting)
    near = [plan for plan in fitting if _rate(plan) > 0.99 * fastest]
    return min(near, key=lambda plan: (_links(plan), plan.memory.total))


def nearest(plans: Sequence[Plan], batch_size: int) -> Plan | None:
    """The best of those that fit at the batch size nearest to this one."""
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        return None
    size = min((plan.batch_size for plan in fitting), key=lambda n: abs(n - batch_size))
    return best([plan for plan in fitting if plan.batch_size == size])


def recommendation(plans: Sequence[Plan], batch_size: int) -> str:
    """A table of all plans, the best and the one nearest to what was asked for."""
    parts = [table(plans)]
    if all(plan.fits is None for plan in plans):
        return f"{parts[0]}\n\nno published rates: nothing to recommend by"
    chosen = best(plans)
    for name, found in (("best", chosen),
                        (f"nearest to batch {batch_size}", nearest(plans, batch_size))):
        parts.append(f"{name}: {describe(found) if found else 'nothing fits'}")
    return "\n\n".join([*parts, *([report(chosen)] if chosen else [])])


def _own_mesh(config: ConfigDict, devices: int) -> tuple[int, int, int]:
    sizes = [config.mesh[name] for name in ("data", "fsdp", "tensor")]
    if sizes.count(-1) == 1:
        known = -sizes[0] * sizes[1] * sizes[2]
        sizes[sizes.index(-1)] = devices // known
    return sizes[0], sizes[1], sizes[2]


def _batches(wanted: int, shards: int, vary: bool) -> list[int]:
    """Batch sizes that divide into so many shards."""
    below = max(wanted // shards * shards, shards)
    above = -(-wanted // shards) * shards
    if not vary:
        return [below]
    half = max(below // 2 // shards * shards, shards)
    return list(dict.fromkeys((below, above, half)))


def _rate(plan: Plan) -> float:
    return plan.estimate.rate if plan.estimate else 0.0


def _links(plan: Plan) -> float:
    return plan.estimate.links if plan.estimate else 0.0
