"""What devices send to each other in a compiled program, read from its HLO text.

Loops are multiplied out by their trip counts, which the text states (CPU, GPU) or the
loop's condition compares with (TPU).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

# Bytes that each device of a ring of n sends, as a share of the whole array.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
KINDS = tuple(_SENT)

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?)\s([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation between devices.

    Attributes:
      kind: one of `KINDS`.
      shapes: "dtype[dims]" of what a device has afterwards.
      bytes: of the whole array (all-gather: gathered; reduce-scatter: before it),
        once; of a collective-permute, what one device passes on.
      group: how many devices take part in each exchange.
      times: how often a step runs it.
      name: where it comes from, by the names of the traced program.
      channel: the compiler's number of the exchange.
    """

    kind: str
    shapes: tuple[str, ...]
    bytes: int
    group: int
    times: int
    name: str
    channel: str = ""

    @property
    def total_bytes(self) -> int:
        """`bytes`, all turns of its loops together."""
        return self.bytes * self.times

    @property
    def sent_bytes(self) -> float:
        """What each device sends in a step, if the exchange is a ring."""
        return self.total_bytes * _SENT[self.kind](self.group)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    result: str
    opcode: str
    line: str


def collectives(hlo: str, devices: int) -> list[Collective]:
    """Every collective of a compiled program (`Compiled.as_text()`).

    Args:
      hlo: the module after partitioning.
      devices: of the mesh; the group of operations that name none.

    Raises:
      ValueError: a loop with collectives whose trip count cannot be told.
    """
    computations, entry = _parse(hlo)
    return list(_walk(computations, entry, 1, "", devices))


def by_kind(found: Iterable[Collective]) -> dict[str, tuple[int, int, float]]:
    """By kind: operations a step, their bytes, and what each device sends."""
    sums = {kind: (0, 0, 0.0) for kind in KINDS}
    for each in found:
        count, size, sent = sums[each.kind]
        sums[each.kind] = (
            count + each.times,
            size + each.total_bytes,
            sent + each.sent_bytes,
        )
    return sums


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Instructions by computation, and the entry's name."""
    computations: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] = []
    entry = ""
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(_Instruction(found[1], found[2], line))
    if not entry:
        raise ValueError("this is no HLO module: it has no ENTRY computation")
    return computations, entry


def _walk(
    computations: dict[str, list[_Instruction]],
    name: str,
    times: int,
    scope: str,
    devices: int,
) -> Iterator[Collective]:
    parts: set[str] = set()
    for each in computations[name]:
        named = _NAME.search(each.line)
        here = named[1] if named else scope
        if each.opcode.removesuffix("-start") in KINDS:
            # A TPU's reduce-scatter is an all-reduce inside a fusion of this name.
            scattered = name.startswith("all-reduce-scatter")
            yield _collective(each, scattered, times, here, devices)
            continue
        if each.opcode.endswith(("-done", "-update")):
            continue  # of an operation that was counted where it started
        for inner in _called(each.line):
            found = list(_walk(computations, inner, 1, here, devices))
            turns = 1
            if found and each.opcode == "while":
                turns = _trips(computations, each.line)
            for collective in found:
                # A TPU spreads one exchange over the fusions between start and end.
                if each.opcode == "fusion" and collective.channel:
                    if collective.channel in parts:
                        continue
                    parts.add(collective.channel)
                yield dataclasses.replace(
                    collective, times=collective.times * times * turns
                )


def _collective(
    found: _Instruction, scattered: bool, times: int, scope: str, devices: int
) -> Collective:
    kind = found.opcode.removesuffix("-start")
    arrays = _ARRAY.findall(found.result)
    if found.opcode in ("all-gather-start", "collective-permute-start"):
        arrays = [array for array in arrays if array[1]]  # less the context's scalars
        arrays = arrays[len(arrays) // 2 :]  # operands stand before results
    if kind == "all-reduce" and scattered:
        kind = "reduce-scatter"
    group = _group(found.line, devices)
    size = sum(map(_bytes, arrays))
    if kind == "reduce-scatter" and not scattered:
        size *= group
    shapes = tuple(f"{dtype}[{dims}]" for dtype, dims in arrays)
    channel = re.search(r"channel_id=(\d+)", found.line)
    return Collective(
        kind, shapes, size, group, times, scope, channel[1] if channel else ""
    )


def _bytes(array: tuple[str, str]) -> int:
    dtype, dims = array
    bits = re.search(r"\d+", dtype)
    elements = math.prod(int(dim) for dim in dims.split(",") if dim)
    return math.ceil(elements * (int(bits[0]) if bits else 8) / 8)


def _group(line: str, devices: int) -> int:
    """Devices of one group, in any of the three ways of writing groups.

    Raises:
      ValueError: they are written in a fourth.
    """
    if "replica_groups=" not in line or "replica_groups={}" in line:
        return devices
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(counted[1])
    meshed = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line)
    if not meshed:
        raise ValueError(f"cannot read the groups of {line.strip()[:300]}")
    sizes = dict(re.findall(r"'([^']*)'=(\d+)", meshed[1]))
    # A part of an axis is written with its own size: 'axis_0':(2)4.
    parts = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", meshed[2])
    return math.prod(int(size or sizes[axis]) for axis, size in parts)


def _called(line: str) -> list[str]:
    """Computations that an instruction runs; of a loop, its body."""
    names: list[str] = []
    for single, several in _CALLED.findall(line):
        names += [single] if single else re.findall(r"[\w.\-]+", several)
    return names


def _trips(computations: dict[str, list[_Instruction]], line: str) -> int:
    """How often a loop's body runs."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    limits = [
        int(value[1])
        for each in (computations[condition[1]] if condition else ())
        if (value := re.search(r"= [su]\d+\[\]\S* constant\((\d+)\)", each.line))
    ]
    if len(limits) != 1:
        raise ValueError(f"a loop of unknown length holds collectives: {line[:200]}")
    return limits[0]
