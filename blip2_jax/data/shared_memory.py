"""Transfer of batches from worker processes where shared memory is small.

Workers hand arrays over in files of /dev/shm. If it fills up, the operating system
kills the worker (exit code -7, SIGBUS) without a message. Containers have 64 MB of it
by default, less than four batches of 128 images.
"""

from __future__ import annotations

import errno
import logging
import os
import pathlib
from typing import Any

import grain

logger = logging.getLogger(__name__)

_FOLDER = pathlib.Path("/dev/shm")
_PIPES = 2**62  # smallest size in bytes of an array that goes through shared memory
_MEGABYTE = 2**20
_MENDS = (
    "enlarge it (docker run --shm-size=8g, or a memory-backed emptyDir in Kubernetes) "
    "or set data.workers=0"
)


def free_shared_memory() -> int | None:
    """Return the free bytes of /dev/shm; None if the system has no such folder."""
    try:
        state = os.statvfs(_FOLDER)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize


def avoid_small_shared_memory(stream: Any, workers: int, batch_bytes: int) -> Any:
    """Send the batches of workers through pipes if shared memory cannot hold them.

    Args:
      stream: the dataset with its worker processes.
      workers: number of worker processes.
      batch_bytes: size of a batch.

    Returns:
      The dataset. Its batches are the same either way; pipes are slower.
    """
    # A worker holds two batches, one of them in its queue; this process holds three.
    needed = (2 * workers + 3) * batch_bytes
    free = free_shared_memory()
    if free is None or free >= needed:
        return stream
    logger.warning(
        "/dev/shm has %d MB free, but %d workers need %d MB; their batches are sent "
        "through pipes, which is slower: %s",
        free // _MEGABYTE,
        workers,
        -(-needed // _MEGABYTE),
        _MENDS,
    )
    options = grain.experimental.DatasetOptions(min_shm_size=_PIPES)
    return grain.experimental.WithOptionsIterDataset(stream, options)


def explain_worker_error(error: Exception) -> Exception:
    """Return the error of a loading process with the reason if /dev/shm is full."""
    killed = "exit code -7" in str(error)  # SIGBUS
    refused = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if not killed and not refused:
        return error
    free = (free_shared_memory() or 0) // _MEGABYTE
    return RuntimeError(
        f"a loading process cannot write to /dev/shm, which is full ({free} MB are "
        f"free): {_MENDS}"
    )
