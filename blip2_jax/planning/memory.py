"""What one device holds during a step, by kind."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax

from blip2_jax.planning.program import Program


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      frozen, trainable, optimizer, batch: of the step's arguments, by their layout.
      padding: what the compiler adds to arguments to tile them.
      outputs: beside the arguments that the step's results are written over.
      temporaries: at the peak: activations, gathered weights, gradients, buffers.
      activations: of `temporaries`, what is kept for the backward pass, by the trace
        (`activations.kept_activations`); None: not counted.
    """

    frozen: int
    trainable: int
    optimizer: int
    batch: int
    padding: int = 0
    outputs: int = 0
    temporaries: int = 0
    activations: int | None = None

    @property
    def kinds(self) -> dict[str, int]:
        """All that is held, nothing twice: `activations` are in `temporaries`."""
        kinds = dataclasses.asdict(self)
        del kinds["activations"]
        return kinds

    @property
    def total(self) -> int:
        """The peak of the step."""
        return sum(self.kinds.values())


@dataclasses.dataclass(frozen=True)
class Refusal:
    """The compiler's words on a step that is too large.

    Attributes:
      needed, available: bytes of one device, as the compiler reports them; None: it
        does not say how many are needed.
      message: its first words.
    """

    needed: float | None
    available: float
    message: str


def bytes_per_device(tree: Any) -> int:
    """Of arrays or shapes with their places, what one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def argument_memory(program: Program) -> Memory:
    """Known before anything is compiled."""
    state = program.state
    return Memory(
        frozen=bytes_per_device(program.frozen),
        trainable=bytes_per_device(state.trainable),
        optimizer=bytes_per_device((state.optimizer, state.step)),
        batch=bytes_per_device(program.batch),
    )


def compiled_memory(arguments: Memory, compiled: Any) -> Memory:
    """`argument_memory`, and what the compiler adds to it (`jax.stages.Compiled`)."""
    found = compiled.memory_analysis()
    return dataclasses.replace(
        arguments,
        padding=found.argument_size_in_bytes - arguments.total,
        outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
    )


def refusal(error: Exception, arguments: Memory, capacity: float) -> Refusal | None:
    """How much a compiler that ran out of memory asked for; None: another error.

    Args:
      error: as `Lowered.compile` raised it.
      arguments: `argument_memory`; some messages tell of temporaries alone.
      capacity: bytes of a device, where the message names none.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return None
    message = " ".join(text.split())[:300]
    if found := re.search(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm", text):
        return Refusal(_size(found[1]), _size(found[2]), message)
    if found := re.search(
        r"temporaries \(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)",
        text,
    ):
        needed = _size(found[1]) + arguments.total
        return Refusal(needed, _size(found[2]), message)
    return Refusal(None, capacity, message)


def _size(text: str) -> float:
    """Bytes of "26.56G"."""
    power = " KMGT".find(text[-1])
    return float(text) if power < 1 else float(text[:-1]) * 1024**power
