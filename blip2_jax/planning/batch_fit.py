"""The batch size that fits a device, estimated without compiling or devices."""

from __future__ import annotations

import os
import subprocess

import jax
from ml_collections import ConfigDict

from blip2_jax.planning.activations import growing_residuals
from blip2_jax.planning.memory import array_bytes
from blip2_jax.planning.program import batch_shapes
from blip2_jax.training.initial_params import frozen_shapes, parameter_shapes
from blip2_jax.training.tasks import make_task

# Bytes of a trained parameter: its fp32 value, its gradient and two moments of Adam.
TRAINED_BYTES = 16
# Allowance for what a compiled step holds beside the activations that the backward pass
# reads, such as the buffers of the largest block.
TEMPORARIES = 1.6
# Share of the memory that a step may take.
USABLE_SHARE = {"gpu": 0.85, "tpu": 0.85, "cpu": 0.5}
_SMALLEST_TPU = 16 << 30  # of a TPU v5e chip
_TRACED_ROWS = 4


def fitting_batch_size(config: ConfigDict, memory: int, largest: int) -> int:
    """Return the largest power of two of rows whose step fits in memory.

    Args:
      config: configuration of a run; its `batch_size` is ignored.
      memory: bytes that the step may take on one device.
      largest: largest batch size to return.

    Returns:
      The number of rows, at least 1 even if no row fits.
    """
    config = ConfigDict(config.to_dict())
    config.batch_size = _TRACED_ROWS
    task = make_task(config)
    shapes = parameter_shapes(config, task)
    frozen = frozen_shapes(config, shapes.frozen)
    fixed = TRAINED_BYTES * _count(shapes.trainable) + sum(
        array_bytes(leaf.size, leaf.dtype) for leaf in jax.tree.leaves(frozen)
    )
    batch = batch_shapes(config, task, row_sharding=None)
    stored = growing_residuals(task, shapes.trainable, frozen, batch)
    row = TEMPORARIES * stored / _TRACED_ROWS
    rows = 1
    while 2 * rows <= largest and fixed + 2 * rows * row <= memory:
        rows *= 2
    return rows


def usable_memory() -> int:
    """Return the bytes that a step may take on one device of this machine.

    Does not initialise JAX's devices. On a GPU machine, that of its smallest GPU; with
    a TPU, that of the smallest chip in use; else a share of the host's memory.
    """
    if "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        if gpus := _gpu_memory():
            return int(USABLE_SHARE["gpu"] * min(gpus))
        if os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0"):
            return int(USABLE_SHARE["tpu"] * _SMALLEST_TPU)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(USABLE_SHARE["cpu"] * host)


def _gpu_memory() -> list[int]:
    """Return the bytes of every NVIDIA GPU, as its driver reports them."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [int(line) << 20 for line in answer.stdout.split() if line.isdigit()]


def _count(tree: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
