"""Start several processes of a run on this machine."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
SUPPORT = pathlib.Path(__file__).parent
TIMEOUT_S = 900
COUNT, DEVICES = 2, 4


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def coordinator_flags() -> list[tuple[str, ...]]:
    """Return the flags of each process by which they connect."""
    address = f"--coordinator_address=localhost:{free_port()}"
    return [
        (address, f"--num_processes={COUNT}", f"--process_id={index}")
        for index in range(COUNT)
    ]


def run_together(script, *arguments, count=COUNT) -> None:
    """Run a script in `count` processes with `DEVICES` devices; all must succeed."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES} "
        "--xla_backend_optimization_level=0",  # as in conftest.py
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": str(count),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, (script, *arguments))],
            env=environment | {"JAX_PROCESS_ID": str(index)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, (process.returncode, errors[-2000:])
    finally:
        for process in processes:
            process.kill()
