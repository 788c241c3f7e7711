"""A run of several processes: how they meet, agree, and read what others hold.

Every process runs the same program on its own devices and data. Alone, a process has
nobody to ask, and nothing here communicates.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

ADDRESS, COUNT, INDEX = (
    "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID",
)  # fmt: skip
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
            address, count, index,
            # Without a cluster's advice a process has all devices of its host.
            cluster_detection_method="deactivate" if told else None,
        )  # fmt: skip
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


def agree(value: float) -> float:
    """The first process's value, in all of them; to the last bit."""
    if jax.process_count() == 1:
        return value
    sent = np.frombuffer(np.float64(value).tobytes(), np.uint8)
    return float(multihost_utils.broadcast_one_to_all(sent).view(np.float64)[0])


def total(count: int) -> int:
    """The sum of all processes' counts."""
    if jax.process_count() == 1:
        return count
    return int(multihost_utils.process_allgather(np.int32(count)).sum())


def wait(what: str) -> None:
    """Return when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def fetch(tree: Any) -> Any:
    """Numpy arrays of the whole values, in every process; all must call this."""

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    return jax.device_get(jax.tree.map(whole, tree))
