"""Rates, utilisation (MFU), data wait and memory of a run."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import resource
import sys
import time
from collections.abc import Iterator

import jax

_STATM = pathlib.Path("/proc/self/statm")  # Linux: memory in pages

# Peak dense bf16 (V100, T4: fp16) FLOP/s of one JAX device from the vendors' data
# sheets, by whole words of its `device_kind`. A TPU v2 or v3 device is half a chip.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
    "TPU v2": 23e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Return the device's dense bf16 peak in FLOP/s; None if it is unknown."""
    kind = device.device_kind
    return next(
        (peak for name, peak in PEAK_FLOPS.items() if re.search(rf"\b{name}\b", kind)),
        None,
    )


def peak_memory_bytes() -> int:
    """Return the peak memory of the fullest local device; on a CPU, of the process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [
        entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry
    ]
    if peaks:
        return max(peaks)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def host_memory_bytes() -> int | None:
    """Return the resident memory of this process; None without /proc.

    `peak_memory_bytes` never falls on a CPU; this shows slow growth below the peak.
    """
    if not _STATM.exists():
        return None
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Meter:
    """Rates over the steps since the last reading.

    Args:
      batch_size: images per step, over all devices.
      flops_per_image: numerator of MFU; None leaves MFU out.
    """

    def __init__(self, batch_size: int, flops_per_image: float | None) -> None:
        self._batch_size = batch_size
        self._flops_per_image = flops_per_image
        self._reset()

    def _reset(self) -> None:
        """Start a new measurement."""
        self._start = time.perf_counter()
        self._waited = 0.0
        self._paused = 0.0
        self._compiled = 0.0
        self._steps = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block (evaluation, saving) from the rates."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Report the time of the block as compilation; it is part of the rates."""
        start = time.perf_counter()
        yield
        self._compiled += time.perf_counter() - start

    def count_step(self) -> None:
        """Count one finished step."""
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Return the rates since the last call and reset the meter."""
        elapsed = time.perf_counter() - self._start - self._paused
        rate = self._steps * self._batch_size / max(elapsed, 1e-9) / jax.device_count()
        values = {
            "images_per_second_per_chip": rate,
            "seconds_per_step": elapsed / max(self._steps, 1),
            "data_wait_share": self._waited / max(elapsed, 1e-9),
            "peak_memory_gb": peak_memory_bytes() / 1e9,
        }
        host_memory = host_memory_bytes()
        if host_memory is not None:
            values["host_memory_gb"] = host_memory / 1e9
        if self._compiled:
            values["compile_seconds"] = self._compiled
        peak = peak_flops(jax.devices()[0])
        if peak and self._flops_per_image:
            values["mfu"] = rate * self._flops_per_image / peak
        self._reset()
        return values
