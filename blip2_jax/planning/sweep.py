"""A small grid of batches, remat policies and meshes, and the best that fits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from ml_collections import ConfigDict

from blip2_jax.nn.stack import REMAT_POLICIES
from blip2_jax.parallel.sharding import AXES as MESH_AXES
from blip2_jax.planning.plan import Plan
from blip2_jax.planning.report import describe, report, table

AXES = ("batch", "remat", "mesh")
# (fsdp, tensor) that are tried beside the configuration's own and beside one and all.
_DIVISIONS = ((8, 1), (8, 2), (4, 4))
_NARROWED = 3  # plans between a batch that fits and one of twice its size that does not


def parse_axes(text: str) -> tuple[str, ...]:
    """ "batch,remat" as names.

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
    division of parameters, division among all devices, and `_DIVISIONS`.
    """
    meshes = [_own_mesh(config, devices)]
    if "mesh" in axes:
        options = ((1, 1), (devices, 1), *_DIVISIONS)
        meshes += [
            (devices // (fsdp * tensor), fsdp, tensor)
            for fsdp, tensor in options
            if devices % (fsdp * tensor) == 0
        ]
    policies = [config.model.remat, *(REMAT_POLICIES if "remat" in axes else ())]
    for mesh, remat in itertools.product(
        dict.fromkeys(meshes), dict.fromkeys(policies)
    ):
        given = config.copy_and_resolve_references().unlock()
        given.model.remat = remat
        for name, size in zip(MESH_AXES, mesh, strict=True):
            given.mesh[name] = size
        given.lock()
        for batch in _batches(config.batch_size, _shards(given), "batch" in axes):
            yield _with_batch(given, batch)


def sweep(
    config: ConfigDict,
    devices: int,
    axes: Sequence[str],
    planned: Callable[[ConfigDict], Plan],
) -> list[Plan]:
    """Plan every candidate; where a batch is too large, look for the largest that fits.

    Args:
      config: see `candidates`.
      devices: of the topology.
      axes: what varies, of `AXES`.
      planned: makes the plan of a candidate.
    """
    plans = []
    grid = candidates(config, devices, axes)
    for _, group in itertools.groupby(grid, key=_all_but_batch):
        alike = list(group)
        found = [planned(candidate) for candidate in alike]
        plans += found
        if "batch" in axes:
            plans += _smaller(alike[0], found, planned)
    return plans


def largest_batch(
    fits: Callable[[int], bool], shards: int, fitting: int, too_large: int
) -> int:
    """The largest batch that fits, less at most an eighth; 0: no row a shard does.

    Halves until a batch fits, then tries at most three between it and the smallest that
    does not: an eighth of what was halved last.

    Args:
      fits: whether a batch does, which is costly to ask.
      shards: batches are multiples of it.
      fitting: the largest known to fit; 0: none is. At least half of `too_large`.
      too_large: the smallest known not to fit.
    """
    while not fitting and too_large > shards:
        half = too_large // 2 // shards * shards
        if fits(half):
            fitting = half
        else:
            too_large = half
    for _ in range(_NARROWED):
        middle = (fitting + too_large) // 2 // shards * shards
        if middle == fitting or not fitting:
            break
        if fits(middle):
            fitting = middle
        else:
            too_large = middle
    return fitting


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


def recommendation(plans: Sequence[Plan], batch_size: int, axes: Sequence[str]) -> str:
    """A table of all plans, the best and the one nearest to what was asked for.

    Args:
      plans: of a sweep.
      batch_size: asked for.
      axes: what was varied, of `AXES`.
    """
    parts = [table(plans)]
    if all(plan.fits is None for plan in plans):
        return f"{parts[0]}\n\nno published rates: nothing to recommend by"
    tried = "at any batch" if "batch" in axes else "and batches were not varied"
    chosen, none = best(plans), f"nothing fits, {tried}"
    for name, found in (
        ("best", chosen),
        (f"nearest to batch {batch_size}", nearest(plans, batch_size)),
    ):
        parts.append(f"{name}: {describe(found) if found else none}")
    return "\n\n".join([*parts, *([report(chosen)] if chosen else [])])


def _smaller(
    config: ConfigDict, plans: Sequence[Plan], planned: Callable[[ConfigDict], Plan]
) -> list[Plan]:
    """More plans like these but for the batch, where some of these do not fit.

    None where a device cannot hold the arguments even without a batch.
    """
    too_large = [plan.batch_size for plan in plans if plan.fits is False]
    if not too_large or any(map(_hopeless, plans)):
        return []
    more: list[Plan] = []

    def fits(batch: int) -> bool:
        more.append(planned(_with_batch(config, batch)))
        return bool(more[-1].fits)

    fitting = [plan.batch_size for plan in plans if plan.fits]
    largest_batch(fits, _shards(config), max(fitting, default=0), min(too_large))
    return more


def _hopeless(plan: Plan) -> bool:
    """Whether parameters and optimizer alone are too large."""
    held = plan.memory.frozen + plan.memory.trainable + plan.memory.optimizer
    return plan.capacity is not None and held > plan.capacity


def _own_mesh(config: ConfigDict, devices: int) -> tuple[int, int, int]:
    sizes = [config.mesh[name] for name in MESH_AXES]
    if sizes.count(-1) == 1:
        known = -sizes[0] * sizes[1] * sizes[2]
        sizes[sizes.index(-1)] = devices // known
    return sizes[0], sizes[1], sizes[2]


def _all_but_batch(config: ConfigDict) -> tuple[str, ...]:
    """What candidates that differ in their batch alone have in common."""
    return (config.model.remat, *(str(config.mesh[name]) for name in MESH_AXES))


def _shards(config: ConfigDict) -> int:
    """What a batch must divide into: devices that take rows, chunks of a step."""
    return config.mesh.data * config.mesh.fsdp * config.optimizer.accumulate


def _with_batch(config: ConfigDict, batch: int) -> ConfigDict:
    changed = config.copy_and_resolve_references().unlock()
    changed.batch_size = batch
    return changed.lock()


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
