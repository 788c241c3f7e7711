"""Collectives of a compiled program, parsed from its HLO text.

A collective in a loop is counted once per iteration. The trip count is stated in the
text (CPU, GPU) or is the constant in the loop's condition (TPU).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

# Bytes that each of n devices in a ring sends, as a fraction of the whole array.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,  # as much as a device receives
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
    """One collective operation.

    Attributes:
      kind: one of `KINDS`.
      shapes: "dtype[dims]" of the results on one device.
      bytes: size of the whole array for one execution (all-gather: after it,
        reduce-scatter: before it, collective-permute: what one device sends).
      group: number of devices that take part.
      times: executions in one training step.
      name: scope in the traced program.
      channel: channel id that the compiler assigned.
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
        """Bytes of all executions in one step."""
        return self.bytes * self.times

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device sends in one step over a ring."""
        return self.total_bytes * _SENT[self.kind](self.group)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """One HLO instruction: its result type, opcode and text."""

    result: str
    opcode: str
    line: str


def collectives(hlo: str, devices: int) -> list[Collective]:
    """List the collectives of a compiled program.

    Args:
      hlo: text of the partitioned module (`Compiled.as_text()`).
      devices: size of the mesh, and of groups that the text leaves out.

    Raises:
      ValueError: the trip count of a loop with collectives is unknown.
    """
    computations, entry = _parse(hlo)
    return list(_walk(computations, entry, 1, "", devices))


def by_kind(operations: Iterable[Collective]) -> dict[str, tuple[int, int, float]]:
    """Sum executions, bytes and bytes sent by each device per kind of collective."""
    sums = {kind: (0, 0, 0.0) for kind in KINDS}
    for operation in operations:
        count, size, sent = sums[operation.kind]
        sums[operation.kind] = (
            count + operation.times,
            size + operation.total_bytes,
            sent + operation.sent_bytes,
        )
    return sums


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Parse HLO text into instructions per computation and the entry's name."""
    computations: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] = []
    entry = ""
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif match := _INSTRUCTION.match(line):
            current.append(_Instruction(match[1], match[2], line))
    if not entry:
        raise ValueError("expected an HLO module: the text has no ENTRY computation")
    return computations, entry


def _walk(
    computations: dict[str, list[_Instruction]],
    name: str,
    times: int,
    scope: str,
    devices: int,
) -> Iterator[Collective]:
    """Yield the collectives of a computation and of those that it calls."""
    channels: set[str] = set()
    for instruction in computations[name]:
        match = _NAME.search(instruction.line)
        inner_scope = match[1] if match else scope
        if instruction.opcode.removesuffix("-start") in KINDS:
            # TPU: a reduce-scatter is an all-reduce inside a fusion of this name.
            scattered = name.startswith("all-reduce-scatter")
            yield _collective(instruction, scattered, times, inner_scope, devices)
            continue
        if instruction.opcode.endswith(("-done", "-update")):
            continue  # The matching "-start" was counted.
        for called in _called(instruction.line):
            inner = list(_walk(computations, called, 1, inner_scope, devices))
            trips = 1
            if inner and instruction.opcode == "while":
                trips = _trips(computations, instruction.line)
            for collective in inner:
                # TPU: one collective spans several fusions with the same channel.
                if instruction.opcode == "fusion" and collective.channel:
                    if collective.channel in channels:
                        continue
                    channels.add(collective.channel)
                yield dataclasses.replace(
                    collective, times=collective.times * times * trips
                )


def _collective(
    instruction: _Instruction, scattered: bool, times: int, scope: str, devices: int
) -> Collective:
    """Build the description of one collective instruction."""
    kind = instruction.opcode.removesuffix("-start")
    arrays = _ARRAY.findall(instruction.result)
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        arrays = [array for array in arrays if array[1]]  # drop scalar context
        arrays = arrays[len(arrays) // 2 :]  # results follow operands
    if kind == "all-reduce" and scattered:
        kind = "reduce-scatter"
    group = _group(instruction.line, devices)
    size = sum(map(_bytes, arrays))
    if kind == "reduce-scatter" and not scattered:
        size *= group
    shapes = tuple(f"{dtype}[{dims}]" for dtype, dims in arrays)
    channel = re.search(r"channel_id=(\d+)", instruction.line)
    return Collective(
        kind, shapes, size, group, times, scope, channel[1] if channel else ""
    )


def _bytes(array: tuple[str, str]) -> int:
    """Compute the bytes of an array given as (dtype, dims)."""
    dtype, dims = array
    bits = re.search(r"\d+", dtype)
    elements = math.prod(int(dim) for dim in dims.split(",") if dim)
    return math.ceil(elements * (int(bits[0]) if bits else 8) / 8)


def _group(line: str, devices: int) -> int:
    """Parse the number of devices in one replica group.

    Raises:
      ValueError: the notation of the groups is unknown.
    """
    if "replica_groups=" not in line or "replica_groups={}" in line:
        return devices
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(counted[1])
    meshed = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line)
    if not meshed:
        raise ValueError(f"unknown notation of replica_groups in {line.strip()[:300]}")
    sizes = dict(re.findall(r"'([^']*)'=(\d+)", meshed[1]))
    # Part of an axis carries its own size: 'axis_0':(2)4.
    parts = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", meshed[2])
    return math.prod(int(size or sizes[axis]) for axis, size in parts)


def _called(line: str) -> list[str]:
    """List the computations that an instruction calls (of a loop, its body)."""
    names: list[str] = []
    for single, several in _CALLED.findall(line):
        names += [single] if single else re.findall(r"[\w.\-]+", several)
    return names


def _trips(computations: dict[str, list[_Instruction]], line: str) -> int:
    """Find the trip count of a loop."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    limits = [
        int(value[1])
        for instruction in (computations[condition[1]] if condition else ())
        if (value := re.search(r"= [su]\d+\[\]\S* constant\((\d+)\)", instruction.line))
    ]
    if len(limits) != 1:
        raise ValueError(f"unknown trip count of a loop with collectives: {line[:200]}")
    return limits[0]
