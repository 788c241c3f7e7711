"""Commands as a user runs them: in processes of their own, with virtual devices."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE_S = 1800


def start(*command, devices=1, **variables) -> subprocess.Popen:
    """Python with these arguments, with so many virtual devices."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, *map(str, command)], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
