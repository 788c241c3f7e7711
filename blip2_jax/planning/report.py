"""A plan as text for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from blip2_jax.planning.collectives import Collective, by_kind
from blip2_jax.planning.estimate import ASSUMPTIONS
from blip2_jax.planning.plan import LARGEST, Plan


def report(plan: Plan) -> str:
    """Everything that a plan holds, in paragraphs."""
    parts = [[describe(plan), verdict(plan)], _memory(plan), _flops(plan)]
    if plan.refusal is None:
        parts += [_collectives(plan), _time(plan)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def describe(plan: Plan) -> str:
    """What was planned, in one line."""
    axes = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    return (
        f"{plan.topology} ({plan.devices} devices: {axes}), "
        f"batch {plan.batch_size}, remat {plan.remat}"
    )


def verdict(plan: Plan) -> str:
    """Whether it fits, in one line."""
    if plan.refusal is not None:
        if plan.refusal.needed is None:
            return f"does not fit: {plan.refusal.message}"
        needed = in_bytes(plan.refusal.needed)
        return f"does not fit: needs {needed} of {in_bytes(plan.refusal.available)}"
    total = in_bytes(plan.memory.total)
    if plan.capacity is None:
        return f"compiles: {total} (a CPU has no memory of its own to fit into)"
    word = "fits" if plan.fits else "does not fit"
    return f"{word}: {total} of {in_bytes(plan.capacity)}"


def table(plans: Sequence[Plan]) -> str:
    """One line a plan, for comparison."""
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
        guess = plan.estimate
        total = plan.memory.total if plan.refusal is None else plan.refusal.needed
        rows.append(
            (
                str(plan.batch_size),
                "x".join(map(str, plan.mesh.values())),
                plan.remat,
                {True: "yes", False: "no", None: "-"}[plan.fits],
                "?" if total is None else in_bytes(total),
                f"{guess.step:.3f}" if guess else "-",
                f"{guess.rate:.1f}" if guess else "-",
            )
        )
    return "\n".join(aligned(rows))


def scaled(number: float, base: int, unit: str) -> str:
    """A number with the prefix that leaves few digits: "12.3 GiB", "1.28 PFLOP"."""
    power = 0
    while abs(number) >= base and power < 5:
        number, power = number / base, power + 1
    prefix = ("", "Ki", "Mi", "Gi", "Ti", "Pi") if base == 1024 else " kMGTP"
    return f"{number:.4g} {prefix[power].strip()}{unit}"


def in_bytes(size: float) -> str:
    """ "12.3 GiB"."""
    return scaled(size, 1024, "B")


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _memory(plan: Plan) -> list[str]:
    """Per device, by kind."""
    what = {
        "temporaries": "activations, gathered weights, gradients, buffers",
        "padding": "of arguments, to tile them",
        "outputs": "beside those written over arguments",
    }
    rows = [
        ("  " + kind, in_bytes(size), what.get(kind, ""))
        for kind, size in plan.memory.kinds.items()
        if size or kind not in what
    ]
    if plan.memory.activations is not None:
        part = "of which " if plan.refusal is None else ""
        kept = f"{part}kept for the backward pass, by the trace"
        rows.append(("    activations", in_bytes(plan.memory.activations), kept))
    if plan.refusal is None:
        rows.append(("  total", in_bytes(plan.memory.total), ""))
    return ["memory of one device", *aligned(rows)]


def _flops(plan: Plan) -> list[str]:
    each = plan.flops / plan.batch_size
    lines = [
        f"matrix products: {scaled(plan.flops, 1000, 'FLOP')} a step, "
        f"{scaled(each, 1000, 'FLOP')} an image (from the traced step)"
    ]
    if plan.numerator is not None:
        lines.append(
            f"numerator of MFU: {scaled(plan.numerator, 1000, 'FLOP')} an image "
            "(the original algorithm's)"
        )
    return lines


def _collectives(plan: Plan) -> list[str]:
    rows = [("  kind", "operations", "bytes", "sent by each device")]
    for kind, (count, size, sent) in by_kind(plan.collectives).items():
        rows.append((f"  {kind}", str(count), in_bytes(size), in_bytes(sent)))
    lines = ["between devices, a step", *aligned(rows)]
    largest = sorted(plan.collectives, key=_size, reverse=True)[:LARGEST]
    if largest:
        named = [
            (f"  {each.kind}", f"{each.times} x", in_bytes(each.bytes), _place(each))
            for each in largest
        ]
        lines += ["the largest", *aligned(named)]
    return lines


def _size(collective: Collective) -> int:
    return collective.total_bytes


def _place(collective: Collective) -> str:
    """Shape and the end of the scope, less what every name has."""
    scope = re.sub(r"jit\(\w+\)/|while/body/|closed_call/", "", collective.name)
    more = ", ..." if len(collective.shapes) > 1 else ""
    return f"{collective.shapes[0]}{more} {scope[-70:]}"


def _time(plan: Plan) -> list[str]:
    guess = plan.estimate
    if guess is None:
        return ["time: no published rates for this hardware"]
    mfu = "" if guess.mfu is None else f" (MFU {guess.mfu:.2f} by the numerator)"
    return [
        f"roofline, an estimate: {guess.roofline:.3f} s a step "
        f"(products {guess.products:.3f}, HBM {guess.memory:.3f}, "
        f"links {guess.links:.3f})",
        f"products at {guess.utilisation:.0%} of {scaled(guess.peak, 1000, 'FLOP/s')}: "
        f"{guess.step:.3f} s a step, {guess.rate:.1f} images/s/chip{mfu}, "
        f"{guess.days(plan.steps):.2f} days for {plan.steps:,} steps",
        "assumed: " + "; ".join(ASSUMPTIONS),
    ]
