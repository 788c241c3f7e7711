"""Start-up of and communication between the processes of a run.

Every process runs the same program on its own devices and data. A single process does
not communicate: all functions return their input.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped, UInt8

ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNT = "JAX_NUM_PROCESSES"
INDEX = "JAX_PROCESS_ID"
_HINT = (
    "give --coordinator_address HOST:PORT --num_processes N --process_id I (or "
    f"{ADDRESS}, {COUNT}, {INDEX} in the environment)"
)


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the processes of a run; call this before JAX initialises its devices.

    Missing arguments come from the environment: from the variables `ADDRESS`, `COUNT`
    and `INDEX`, or from a cluster that JAX detects (SLURM, Open MPI, Kubernetes, TPU
    pods).

    Args:
      coordinator_address: "host:port" of process 0, the same for all processes.
      num_processes: number of processes.
      process_id: index of this process, from 0.

    Raises:
      ValueError: an argument is invalid, or is missing and not in the environment.
      RuntimeError: the other processes did not connect.
    """
    address = coordinator_address or os.environ.get(ADDRESS)
    count = _number(num_processes, COUNT)
    index = _number(process_id, INDEX)
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise ValueError(f"coordinator_address is {address!r}, but must be HOST:PORT")
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(f"process_id is {index}, but must be in 0 .. {count - 1}")
    complete = None not in (address, count, index)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            # Detection would restrict a process to a part of its host's devices.
            cluster_detection_method="deactivate" if complete else None,
        )
    except (ValueError, KeyError) as error:
        raise ValueError(
            "cannot start several processes: JAX detects no SLURM or MPI job and no "
            f"TPU pod ({error}); {_HINT}"
        ) from error
    except RuntimeError as error:
        raise RuntimeError(
            f"process {index} of {count} could not connect to {address}: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _number(value: int | None, variable: str) -> int | None:
    """Return the value, or that of the environment variable if it is None."""
    if value is not None:
        return value
    text = os.environ.get(variable)
    if text is not None and not text.isdigit():
        raise ValueError(f"{variable} is {text!r}, but must be a number")
    return None if text is None else int(text)


def is_first() -> bool:
    """Return True in process 0, which writes the files that are written once."""
    return jax.process_index() == 0


def broadcast_from_first(value: float) -> float:
    """Return the value of process 0 in all processes, bit for bit."""
    if jax.process_count() == 1:
        return value
    # As bytes, because JAX would round a float64 to float32.
    data = np.frombuffer(np.float64(value).tobytes(), np.uint8)
    return float(multihost_utils.broadcast_one_to_all(data).view(np.float64)[0])


def sum_over_hosts(count: int) -> int:
    """Return the sum of the counts of all processes."""
    if jax.process_count() == 1:
        return count
    return int(multihost_utils.process_allgather(np.int32(count)).sum())


def sum_each_over_hosts(counts: Sequence[int]) -> list[int]:
    """Return the sums of several counts of all processes."""
    if jax.process_count() == 1:
        return list(counts)
    gathered = multihost_utils.process_allgather(np.array(counts, np.int32))
    return [int(count) for count in gathered.sum(axis=0)]


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of a list that one process works on: items i, i + n, i + 2n, ...

    Attributes:
      index: i, the index of the process.
      count: n, the number of processes.
    """

    index: int = 0
    count: int = 1

    def indices(self, total: int) -> range:
        """Return the indices of this share's items in a list of `total` items."""
        return range(self.index, total, self.count)


def own_share() -> Share:
    """Return this process's share of work that each process does with its own model."""
    return Share(jax.process_index(), jax.process_count())


def all_gather(value: Any, share: Share) -> list[Any]:
    """Gather the values of all processes, ordered by index; all must call this.

    Args:
      value: a value that JSON can represent.
      share: this process's share; with a count of one nothing is sent.
    """
    if share.count == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    return [json.loads(part.tobytes()) for part in _gather_bytes(data)]


def gather_arrays(
    array: Shaped[np.ndarray, "rows ..."], share: Share
) -> list[Shaped[np.ndarray, "rows ..."]]:
    """Gather arrays of all processes; only the number of rows may differ."""
    if share.count == 1:
        return [array]
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return [
        part.view(array.dtype).reshape(-1, *array.shape[1:])
        for part in _gather_bytes(flat)
    ]


def all_gather_rows(
    rows: Shaped[np.ndarray, "rows ..."], share: Share
) -> Shaped[np.ndarray, "total ..."]:
    """Gather the rows of all shares and put them into the order of the whole list."""
    parts = gather_arrays(rows, share)
    whole = np.empty((sum(map(len, parts)), *rows.shape[1:]), rows.dtype)
    for index, part in enumerate(parts):
        whole[index :: share.count] = part
    return whole


def _gather_bytes(data: UInt8[np.ndarray, " rows"]) -> list[UInt8[np.ndarray, " rows"]]:
    """Gather byte arrays of different lengths."""
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = data
    parts = multihost_utils.process_allgather(padded)
    return [part[:n].copy() for part, n in zip(parts, lengths, strict=True)]


def barrier(name: str) -> None:
    """Wait until every process has reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def to_host(tree: Any) -> Any:
    """Copy a tree of global arrays to numpy in every process; all must call this."""

    def gather(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    return jax.device_get(jax.tree.map(gather, tree))
