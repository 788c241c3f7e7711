"""Versions and devices, for the records of runs and evaluations."""

from __future__ import annotations

import datetime
import platform
from typing import Any

import jax

import blip2_jax


def environment() -> dict[str, Any]:
    """Return versions, devices, number of processes, machine and date."""
    return {
        "version": blip2_jax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "machine": platform.machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
