"""Where the worker processes of this machine run: each on its device or its cores."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping

# A child process asks JAX, because JAX takes the memory of the devices that it opens.
_QUERY = """
import json, jax
devices = jax.local_devices()
is_tpu = devices[0].platform == "tpu"  # some chips are two devices
chips = {str(d.coords) if is_tpu else str(d.id) for d in devices}
print(json.dumps([devices[0].platform, len(chips)]))
"""
_CACHE_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)
_MEMORY_SHARE = 0.75  # of a GPU that JAX takes by default


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a worker runs.

    Attributes:
      environment: variables to set before the worker starts.
      cores: cores to which the worker is bound; (): all.
    """

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: tuple[int, ...] = ()


def worker_places(processes: int | None, uses_model: bool) -> list[Place]:
    """Distribute worker processes over the devices or cores of this machine.

    Each worker of a model sees one GPU or TPU chip; on a machine without them it is
    bound to its share of the cores. It keeps compiled programs where this process does.

    Args:
      processes: number of workers; None: one for each GPU or TPU chip, or one for a
        machine without them. Without a model one for each core.
      uses_model: the workers compute with JAX.

    Raises:
      RuntimeError: JAX finds no device.
    """
    cores = available_cores()
    if not uses_model:
        return [Place()] * (processes or len(cores))
    if processes == 1:
        return [Place()]
    platform, devices = local_devices()
    cache = _cache_environment()
    if platform == "cpu":
        processes = processes or 1
        shares = [tuple(cores[index::processes]) for index in range(processes)]
        return [
            Place(cache, share or (cores[index % len(cores)],))
            for index, share in enumerate(shares)
        ]
    processes = processes or devices
    return [
        Place(
            cache
            | _device_environment(platform, index % devices, -(-processes // devices))
        )
        for index in range(processes)
    ]


def available_cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def local_devices() -> tuple[str, int]:
    """Return the platform of JAX ("cpu", "gpu" or "tpu") and its number of chips.

    Raises:
      RuntimeError: JAX finds no device.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return "cpu", 1
    answer = subprocess.run(
        [sys.executable, "-c", _QUERY],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    )
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"]
        raise RuntimeError(f"JAX finds no device: {lines[-1]}")
    platform, count = json.loads(answer.stdout.splitlines()[-1])
    return platform, count


def _cache_environment() -> dict[str, str]:
    """Return this process's settings of the compile cache as variables."""
    jax = sys.modules.get("jax")
    if jax is None:
        return {}
    if not jax.config.jax_enable_compilation_cache:
        return {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    if not jax.config.jax_compilation_cache_dir:
        return {}
    values = {name: getattr(jax.config, name) for name in _CACHE_SETTINGS}
    return {
        name.upper(): str(value) for name, value in values.items() if value is not None
    }


def _device_environment(platform: str, index: int, sharing: int) -> dict[str, str]:
    """Return the variables by which a process sees one device.

    Args:
      platform: "gpu" or "tpu".
      index: index among the devices that this process sees.
      sharing: number of processes on the device.
    """
    if platform == "tpu":
        return {
            "TPU_VISIBLE_CHIPS": str(index),
            "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
            "TPU_PROCESS_BOUNDS": "1,1,1",
        }
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else []
    environment = {"CUDA_VISIBLE_DEVICES": names[index] if names else str(index)}
    if sharing > 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        share = _MEMORY_SHARE / sharing
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{share:.3f}"
    return environment
