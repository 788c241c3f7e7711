"""Compile targets by name, with the published rates of their hardware.

"v5e:16x16" is a TPU slice of 16 x 16 chips; "cpu:8" is eight virtual CPU
devices. The hardware need not be present.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from blip2_jax.perf.meters import peak_flops


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published rates of one accelerator chip, which is one JAX device.

    Attributes:
      memory: bytes of HBM.
      memory_bandwidth: bytes/s of HBM.
      link_bandwidth: bytes/s that a chip sends over all its ports, one way.
      torus_axes: dimensions of the torus; the ports are divided equally among them.
    """

    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    torus_axes: int


# Google Cloud TPU documentation, pages v4, v5e, v5p, v6e; bidirectional rates halved.
CHIPS = {
    "v4": Chip(32 * 2**30, 1228e9, 300e9, 3),
    "v5e": Chip(16 * 2**30, 819e9, 200e9, 2),
    "v5p": Chip(95 * 2**30, 2765e9, 600e9, 3),
    "v6e": Chip(32 * 2**30, 1600e9, 400e9, 2),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: name given to `open_topology`.
      devices: devices of the compile target.
      chip: published rates, or None for a CPU.
      peak: dense bf16 FLOP/s of one device, or None if unknown.
    """

    name: str
    devices: Sequence[jax.Device]
    chip: Chip | None
    peak: float | None


def open_topology(name: str) -> Topology:
    """Create the devices of a topology.

    Args:
      name: "v4:2x2x1", "v5e:16x16", "v5p:4x4x4", "v6e:2x4", ... or "cpu:8". Virtual
        CPU devices must be created before JAX initialises its backends.

    Raises:
      ValueError: unknown name or slice, or too few CPU devices.
      ImportError: the TPU compiler is not installed.
    """
    kind, _, size = name.partition(":")
    if kind == "cpu" and re.fullmatch(r"[1-9]\d*", size):
        return Topology(name, _cpu_devices(int(size)), None, None)
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", size):
        raise ValueError(
            f"unknown topology {name!r}; expected v4:AxBxC, v5e:AxB, v5p:AxBxC, "
            "v6e:AxB (a slice by chips, e.g. v5e:16x16) or cpu:N"
        )
    devices = _tpu_devices(name, tuple(map(int, size.split("x"))))
    return Topology(name, devices, CHIPS[kind], peak_flops(devices[0]))


def _cpu_devices(count: int) -> list[jax.Device]:
    """Create virtual CPU devices."""
    flag = f"--xla_force_host_platform_device_count={count}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"cpu:{count} needs {count} CPU devices, but JAX was initialised "
            f"with {len(devices)}"
        )
    return devices[:count]


def _tpu_devices(name: str, shape: tuple[int, ...]) -> list[jax.Device]:
    """Describe the devices of a TPU slice with the compiler in libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f"compiling for {name} needs the TPU compiler, which runs on any Linux "
            "machine: pip install 'jax[tpu]'"
        )
    os.environ.setdefault(
        "TPU_SKIP_MDS_QUERY", "1"
    )  # no TPU VM: do not query its metadata server
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    kind = name.partition(":")[0].replace("v5e", "v5litepod")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{kind}-8")  # required, but not used
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options: dict[str, Any] = {}
    if math.prod(shape) < 4:  # smaller than the default host of 2 x 2 chips
        options["chips_per_host_bounds"] = [*shape, 1, 1][:3]
    if name.startswith("v4"):  # one device per chip, not per core
        options["chip_config_name"] = "megacore"
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **options
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"libtpu does not know the slice {name}: {reason}") from error
    return list(description.devices)
