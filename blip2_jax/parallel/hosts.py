"""A run of several processes: how they meet, agree, and read what others hold.

Every process runs the same program on its own devices and data. Alone, a process has
nobody to ask, and nothing here communicates.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped, UInt8

ADDRESS, COUNT, INDEX = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)
_HOW = (
    "give --coordinator_address HOST:PORT --num_processes N --process_id I (or "
    f"{ADDRESS}, {COUNT}, {INDEX} in the environment)"
)


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Become one of the processes of a run; call it before jax looks for devices.

    What is not given comes from the environment: the variables above, or what jax
    knows of SLURM, Open MPI, Kubernetes and TPU pods.

    Args:
      coordinator_address: "host:port" of process 0, the same for all.
      num_processes: how many there are.
      process_id: which this is, from 0.

    Raises:
      ValueError: what is given makes no sense, or something is missing and the
        environment does not tell.
      RuntimeError: the others did not come.
    """
    address = coordinator_address or os.environ.get(ADDRESS)
    count = _number(num_processes, COUNT)
    index = _number(process_id, INDEX)
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise ValueError(f"the coordinator's address is {address!r}, not HOST:PORT")
    if count is not None and index is not None and not 0 <= index < count:
        raise ValueError(f"process_id is {index} of num_processes {count}: from 0 on")
    told = None not in (address, count, index)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            # Without a cluster's advice a process has all devices of its host.
            cluster_detection_method="deactivate" if told else None,
        )
    except (ValueError, KeyError) as error:
        raise ValueError(
            "several processes were asked for, but this is no SLURM or MPI job and no "
            f"TPU pod that jax knows ({error}): {_HOW}"
        ) from error
    except RuntimeError as error:
        raise RuntimeError(
            f"process {index} of {count} could not meet the others at {address}: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _number(given: int | None, variable: str) -> int | None:
    """What is given, else what the environment says."""
    if given is not None:
        return given
    text = os.environ.get(variable)
    if text is not None and not text.isdigit():
        raise ValueError(f"{variable} is {text!r}, not a number")
    return None if text is None else int(text)


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def broadcast_from_first(value: float) -> float:
    """The first process's value, in all of them; to the last bit."""
    if jax.process_count() == 1:
        return value
    sent = np.frombuffer(np.float64(value).tobytes(), np.uint8)
    return float(multihost_utils.broadcast_one_to_all(sent).view(np.float64)[0])


def sum_over_hosts(count: int) -> int:
    """The sum of all processes' counts."""
    if jax.process_count() == 1:
        return count
    return int(multihost_utils.process_allgather(np.int32(count)).sum())


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of a list that one process works on: every `count`-th, from `index`."""

    index: int = 0
    count: int = 1

    def indices(self, total: int) -> range:
        """Where its elements stand in a list of `total`."""
        return range(self.index, total, self.count)


def own_share() -> Share:
    """What this process works on where each has a model of its own."""
    return Share(jax.process_index(), jax.process_count())


def all_gather(value: Any, share: Share) -> list[Any]:
    """The values of all who share, by index; all of them must call this.

    Args:
      value: what JSON can hold.
      share: this process's; with a count of one nothing is sent.
    """
    if share.count == 1:
        return [value]
    sent = np.frombuffer(json.dumps(value).encode(), np.uint8)
    return [json.loads(part.tobytes()) for part in _gather_bytes(sent)]


def gather_arrays(
    array: Shaped[np.ndarray, "rows ..."], share: Share
) -> list[Shaped[np.ndarray, "rows ..."]]:
    """As `all_gather`, of arrays that are alike but for their number of rows."""
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
    """All rows in their places, of which each process has its share's."""
    parts = gather_arrays(rows, share)
    whole = np.empty((sum(map(len, parts)), *rows.shape[1:]), rows.dtype)
    for index, part in enumerate(parts):
        whole[index :: share.count] = part
    return whole


def _gather_bytes(sent: UInt8[np.ndarray, " rows"]) -> list[UInt8[np.ndarray, " rows"]]:
    """The bytes of every process, as many as each has."""
    lengths = multihost_utils.process_allgather(np.int32(len(sent)))
    filled = np.zeros(int(lengths.max()), np.uint8)
    filled[: len(sent)] = sent
    parts = multihost_utils.process_allgather(filled)
    return [part[:n].copy() for part, n in zip(parts, lengths, strict=True)]


def barrier(what: str) -> None:
    """Return when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def to_host(tree: Any) -> Any:
    """Numpy arrays of the whole values, in every process; all must call this."""

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    return jax.device_get(jax.tree.map(whole, tree))
