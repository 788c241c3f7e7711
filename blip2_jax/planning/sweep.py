"""Grid search over batch size, remat policy and mesh for the best plan that fits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from ml_collections import ConfigDict

from blip2_jax.nn.stack import REMAT_POLICIES
from blip2_jax.parallel.sharding import AXES as MESH_AXES
from blip2_jax.planning.plan import Plan
from blip2_jax.planning.report import describe, report, table

AXES = ("batch", "remat", "mesh")
# (fsdp, tensor) sizes tried besides the configured ones, (1, 1) and (devices, 1).
_DIVISIONS = ((8, 1), (8, 2), (4, 4), (1, 4), (1, 8))
_NARROWED = 3  # bisection steps between a batch that fits and twice that batch


def parse_axes(text: str) -> tuple[str, ...]:
    """Split a list like "batch,remat" into names of axes.

    Raises:
      ValueError: a name is not in `AXES`.
    """
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in AXES:
            raise ValueError(
                f"cannot sweep {name!r}; expected some of {', '.join(AXES)}"
            )
    return names


def candidates(
    config: ConfigDict, devices: int, axes: Sequence[str]
) -> Iterator[ConfigDict]:
    """Yield the configurations of the grid, with the configured values first.

    Batch sizes are the nearest multiples of the number of shards below and above the
    configured one, and half of it. Meshes are: parameters replicated, sharded over all
    devices, and `_DIVISIONS`.

    Args:
      config: configuration to vary.
      devices: number of devices.
      axes: names from `AXES` to vary.
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
        candidate = config.copy_and_resolve_references().unlock()
        candidate.model.remat = remat
        for name, size in zip(MESH_AXES, mesh, strict=True):
            candidate.mesh[name] = size
        candidate.lock()
        for batch in _batches(config.batch_size, _shards(candidate), "batch" in axes):
            yield _with_batch(candidate, batch)


def sweep(
    config: ConfigDict,
    devices: int,
    axes: Sequence[str],
    make_plan: Callable[[ConfigDict], Plan],
) -> list[Plan]:
    """Plan every candidate; if a batch is too large, search for the largest that fits.

    Args:
      config: configuration to vary.
      devices: number of devices.
      axes: names from `AXES` to vary.
      make_plan: function that plans one candidate.
    """
    plans = []
    grid = candidates(config, devices, axes)
    for _, group in itertools.groupby(grid, key=_all_but_batch):
        alike = list(group)
        group_plans = [make_plan(candidate) for candidate in alike]
        plans += group_plans
        if "batch" in axes:
            plans += _smaller(alike[0], group_plans, make_plan)
    return plans


def largest_batch(
    fits: Callable[[int], bool], shards: int, fitting: int, too_large: int
) -> int:
    """Find the largest batch that fits, to within an eighth.

    Halves the batch until it fits, then bisects at most three times between it and the
    smallest batch that does not fit.

    Args:
      fits: function that tests a batch size; it compiles, so calls are expensive.
      shards: divisor of every batch size.
      fitting: largest size known to fit, or 0; at least half of `too_large`.
      too_large: smallest size known not to fit.

    Returns:
      The batch size, or 0 if one row per shard does not fit.
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
    """Select the plan that fits with the most images per second and chip.

    Rates within 1 % count as equal; among these, the plan with the least traffic, then
    the least memory, wins.
    """
    fitting = [plan for plan in plans if plan.fits and plan.estimate is not None]
    if not fitting:
        return None
    fastest = max(_rate(plan) for plan in fitting)
    near = [plan for plan in fitting if _rate(plan) > 0.99 * fastest]
    return min(near, key=lambda plan: (_links(plan), plan.memory.total))


def nearest(plans: Sequence[Plan], batch_size: int) -> Plan | None:
    """Select the best plan that fits at the batch size nearest to `batch_size`."""
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        return None
    size = min((plan.batch_size for plan in fitting), key=lambda n: abs(n - batch_size))
    return best([plan for plan in fitting if plan.batch_size == size])


def recommendation(plans: Sequence[Plan], batch_size: int, axes: Sequence[str]) -> str:
    """Format a table of all plans, the best one, and the one nearest to `batch_size`.

    Args:
      plans: result of `sweep`.
      batch_size: configured batch size.
      axes: names from `AXES` that were varied.
    """
    parts = [table(plans)]
    if all(plan.fits is None for plan in plans):
        return f"{parts[0]}\n\nno recommendation: this hardware has no published rates"
    tried = "at any batch size" if "batch" in axes else "at this batch size"
    chosen, none = best(plans), f"nothing fits {tried}"
    for name, plan in (
        ("best", chosen),
        (f"nearest to batch {batch_size}", nearest(plans, batch_size)),
    ):
        parts.append(f"{name}: {describe(plan) if plan else none}")
    return "\n\n".join([*parts, *([report(chosen)] if chosen else [])])


def _smaller(
    config: ConfigDict, plans: Sequence[Plan], make_plan: Callable[[ConfigDict], Plan]
) -> list[Plan]:
    """Plan smaller batches if some of `plans` do not fit.

    Plans nothing if a device cannot hold even parameters and optimizer state.
    """
    too_large = [plan.batch_size for plan in plans if plan.fits is False]
    if not too_large or any(map(_hopeless, plans)):
        return []
    more: list[Plan] = []

    def fits(batch: int) -> bool:
        more.append(make_plan(_with_batch(config, batch)))
        return bool(more[-1].fits)

    fitting = [plan.batch_size for plan in plans if plan.fits]
    largest_batch(fits, _shards(config), max(fitting, default=0), min(too_large))
    return more


def _hopeless(plan: Plan) -> bool:
    """Test if parameters and optimizer state alone exceed the memory."""
    held = plan.memory.frozen + plan.memory.trainable + plan.memory.optimizer
    return plan.capacity is not None and held > plan.capacity


def _own_mesh(config: ConfigDict, devices: int) -> tuple[int, int, int]:
    """Return the configured mesh sizes with -1 resolved."""
    sizes = [config.mesh[name] for name in MESH_AXES]
    if sizes.count(-1) == 1:
        known = -sizes[0] * sizes[1] * sizes[2]
        sizes[sizes.index(-1)] = devices // known
    return sizes[0], sizes[1], sizes[2]


def _all_but_batch(config: ConfigDict) -> tuple[str, ...]:
    """Return the key that candidates share if only their batch size differs."""
    return (config.model.remat, *(str(config.mesh[name]) for name in MESH_AXES))


def _shards(config: ConfigDict) -> int:
    """Compute the divisor of the batch size: row shards x accumulation chunks."""
    return config.mesh.data * config.mesh.fsdp * config.optimizer.accumulate


def _with_batch(config: ConfigDict, batch: int) -> ConfigDict:
    """Copy a configuration with another batch size."""
    changed = config.copy_and_resolve_references().unlock()
    changed.batch_size = batch
    return changed.lock()


def _batches(size: int, shards: int, vary: bool) -> list[int]:
    """List the batch sizes to try: multiples of `shards` near `size`."""
    below = max(size // shards * shards, shards)
    above = -(-size // shards) * shards
    if not vary:
        return [below]
    half = max(below // 2 // shards * shards, shards)
    return list(dict.fromkeys((below, above, half)))


def _rate(plan: Plan) -> float:
    """Return images per second and chip, or 0."""
    return plan.estimate.rate if plan.estimate else 0.0


def _links(plan: Plan) -> float:
    """Return the seconds of traffic between chips, or 0."""
    return plan.estimate.links if plan.estimate else 0.0
