"""Plans as text for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from blip2_jax.planning.collectives import Collective, by_kind
from blip2_jax.planning.estimate import ASSUMPTIONS
from blip2_jax.planning.plan import LARGEST, Plan


def report(plan: Plan) -> str:
    """Format all numbers of a plan, in paragraphs."""
    parts = [[describe(plan), verdict(plan)], _memory(plan), _flops(plan)]
    if plan.refusal is None:
        parts += [_collectives(plan), _time(plan)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def describe(plan: Plan) -> str:
    """Format topology, mesh, batch and remat policy of a plan in one line."""
    axes = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    return (
        f"{plan.topology} ({plan.devices} devices: {axes}), "
        f"batch {plan.batch_size}, remat {plan.remat}"
    )


def verdict(plan: Plan) -> str:
    """Say in one line if the plan fits."""
    if plan.refusal is not None:
        if plan.refusal.needed is None:
            return f"does not fit: {plan.refusal.message}"
        needed = in_bytes(plan.refusal.needed)
        return f"does not fit: needs {needed} of {in_bytes(plan.refusal.available)}"
    total = in_bytes(plan.memory.total)
    if plan.capacity is None:
        return f"compiles: {total} (no memory limit is known for a CPU)"
    word = "fits" if plan.fits else "does not fit"
    return f"{word}: {total} of {in_bytes(plan.capacity)}"


def table(plans: Sequence[Plan]) -> str:
    """Format plans as a table with one line per plan."""
    rows = [
        (
            "batch",
            "mesh (data x fsdp x tensor)",
            "remat",
            "fits",
            "memory",
            "s/step",
            "images/s/chip",
        )
    ]
    for plan in plans:
        estimate = plan.estimate
        total = plan.memory.total if plan.refusal is None else plan.refusal.needed
        rows.append(
            (
                str(plan.batch_size),
                "x".join(map(str, plan.mesh.values())),
                plan.remat,
                {True: "yes", False: "no", None: "-"}[plan.fits],
                "?" if total is None else in_bytes(total),
                f"{estimate.step:.3f}" if estimate else "-",
                f"{estimate.rate:.1f}" if estimate else "-",
            )
        )
    return "\n".join(aligned(rows))


def scaled(number: float, base: int, unit: str) -> str:
    """Format a number with a unit prefix, like "12.3 GiB" or "1.28 PFLOP"."""
    power = 0
    while abs(number) >= base and power < 5:
        number, power = number / base, power + 1
    prefix = ("", "Ki", "Mi", "Gi", "Ti", "Pi") if base == 1024 else " kMGTP"
    return f"{number:.4g} {prefix[power].strip()}{unit}"


def in_bytes(size: float) -> str:
    """Format bytes, like "12.3 GiB"."""
    return scaled(size, 1024, "B")


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Align rows of cells into columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _memory(plan: Plan) -> list[str]:
    """Format the memory of one device by kind."""
    notes = {
        "temporaries": "activations, gathered weights, gradients, buffers",
        "padding": "of arguments to tiles",
        "outputs": "not written over donated arguments",
    }
    rows = [
        ("  " + kind, in_bytes(size), notes.get(kind, ""))
        for kind, size in plan.memory.kinds.items()
        if size or kind not in notes
    ]
    if plan.memory.activations is not None:
        part = "of which " if plan.refusal is None else ""
        kept = f"{part}stored for the backward pass, from the trace"
        rows.append(("    activations", in_bytes(plan.memory.activations), kept))
    if plan.refusal is None:
        rows.append(("  total", in_bytes(plan.memory.total), ""))
    return ["memory of one device", *aligned(rows)]


def _flops(plan: Plan) -> list[str]:
    """Format the matmul FLOPs of the step."""
    each = plan.flops / plan.batch_size
    lines = [
        f"matmuls: {scaled(plan.flops, 1000, 'FLOP')} per step, "
        f"{scaled(each, 1000, 'FLOP')} per image (from the traced step)"
    ]
    if plan.numerator is not None:
        lines.append(
            f"numerator of MFU: {scaled(plan.numerator, 1000, 'FLOP')} per image "
            "(the original algorithm)"
        )
    return lines


def _collectives(plan: Plan) -> list[str]:
    """Format the collectives by kind, and the largest ones."""
    rows = [("  kind", "operations", "bytes", "sent by each device")]
    for kind, (count, size, sent) in by_kind(plan.collectives).items():
        rows.append((f"  {kind}", str(count), in_bytes(size), in_bytes(sent)))
    lines = ["collectives per step", *aligned(rows)]
    largest = sorted(plan.collectives, key=_size, reverse=True)[:LARGEST]
    if largest:
        named = [
            (f"  {each.kind}", f"{each.times} x", in_bytes(each.bytes), _origin(each))
            for each in largest
        ]
        lines += ["the largest", *aligned(named)]
    return lines


def _size(collective: Collective) -> int:
    """Return the sort key of `_collectives`."""
    return collective.total_bytes


def _origin(collective: Collective) -> str:
    """Format the shape and the end of the scope without its common parts."""
    scope = re.sub(r"jit\(\w+\)/|while/body/|closed_call/", "", collective.name)
    more = ", ..." if len(collective.shapes) > 1 else ""
    return f"{collective.shapes[0]}{more} {scope[-70:]}"


def _time(plan: Plan) -> list[str]:
    """Format the estimated step time."""
    estimate = plan.estimate
    if estimate is None:
        return ["time: no published rates for this hardware"]
    mfu = "" if estimate.mfu is None else f" (MFU {estimate.mfu:.2f})"
    peak = scaled(estimate.peak, 1000, "FLOP/s")
    return [
        f"roofline estimate: {estimate.roofline:.3f} s per step "
        f"(matmuls {estimate.products:.3f}, HBM {estimate.memory:.3f}, "
        f"links {estimate.links:.3f})",
        f"matmuls at {estimate.utilisation:.0%} of {peak}: "
        f"{estimate.step:.3f} s per step, {estimate.rate:.1f} images/s/chip{mfu}, "
        f"{estimate.days(plan.steps):.2f} days for {plan.steps:,} steps",
        "assumptions: " + "; ".join(ASSUMPTIONS),
    ]
