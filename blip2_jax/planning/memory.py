"""Memory of one device during a training step, by kind."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blip2_jax.planning.program import Program


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      frozen: frozen parameters, as sharded.
      trainable: trainable parameters, as sharded.
      optimizer: optimizer state, as sharded.
      batch: rows of the batch on this device.
      padding: bytes that the compiler adds to tile the arguments.
      outputs: results that are not written over donated arguments.
      temporaries: peak of activations, gathered weights, gradients and buffers.
      activations: part of `temporaries` stored for the backward pass, counted from the
        trace (`activations.kept_activations`), or None.
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
        """Bytes by kind, without `activations`, which are part of `temporaries`."""
        kinds = dataclasses.asdict(self)
        del kinds["activations"]
        return kinds

    @property
    def total(self) -> int:
        """Peak bytes during the step."""
        return sum(self.kinds.values())


@dataclasses.dataclass(frozen=True)
class Refusal:
    """The compiler's report on a step that does not fit.

    Attributes:
      needed: bytes that one device would need, or None if the report does not say.
      available: bytes of one device.
      message: start of the report.
    """

    needed: float | None
    available: float
    message: str


def array_bytes(size: int, dtype: np.dtype) -> int:
    """Compute the bytes of an array on a device, which packs two int4 into a byte."""
    integer = jnp.issubdtype(dtype, jnp.integer)
    bits = jnp.iinfo(dtype).bits if integer else 8 * dtype.itemsize
    return -(-size * bits // 8)


def bytes_per_device(tree: Any) -> int:
    """Compute the bytes of one device's shards of arrays or `ShapeDtypeStruct`s."""
    return sum(
        array_bytes(math.prod(leaf.sharding.shard_shape(leaf.shape)), leaf.dtype)
        for leaf in jax.tree.leaves(tree)
    )


def argument_memory(program: Program) -> Memory:
    """Compute the memory of the step's arguments, without compiling."""
    state = program.state
    return Memory(
        frozen=bytes_per_device(program.frozen),
        trainable=bytes_per_device(state.trainable),
        optimizer=bytes_per_device((state.optimizer, state.step)),
        batch=bytes_per_device(program.batch),
    )


def compiled_memory(arguments: Memory, compiled: Any) -> Memory:
    """Add what the compiled step (`jax.stages.Compiled`) needs to its arguments."""
    analysis = compiled.memory_analysis()
    return dataclasses.replace(
        arguments,
        padding=analysis.argument_size_in_bytes - arguments.total,
        outputs=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
    )


def refusal(error: Exception, arguments: Memory, capacity: float) -> Refusal | None:
    """Parse an out-of-memory error of the compiler; None for any other error.

    Args:
      error: exception that `Lowered.compile` raised.
      arguments: result of `argument_memory`; some messages count temporaries only.
      capacity: bytes of a device, used if the message does not name them.
    """
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return None
    message = " ".join(text.split())[:300]
    if match := re.search(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm", text):
        return Refusal(_size(match[1]), _size(match[2]), message)
    if match := re.search(
        r"temporaries \(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)",
        text,
    ):
        needed = _size(match[1]) + arguments.total
        return Refusal(needed, _size(match[2]), message)
    return Refusal(None, capacity, message)


def _size(text: str) -> float:
    """Parse a size like "26.56G" into bytes."""
    power = " KMGT".find(text[-1])
    return float(text) if power < 1 else float(text[:-1]) * 1024**power
