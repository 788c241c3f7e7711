"""Options by which the processes of one run find each other."""

from __future__ import annotations

import argparse
import os
import sys


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run of several processes (docs/training.md)."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--multihost",
        action="store_true",
        help="this is one of several processes that a cluster has started",
    )
    group.add_argument(
        "--coordinator_address", metavar="HOST:PORT", help="address of process 0"
    )
    group.add_argument(
        "--num_processes", type=int, metavar="N", help="number of processes"
    )
    group.add_argument(
        "--process_id", type=int, metavar="N", help="number of this process, from 0"
    )


def join_processes(arguments: argparse.Namespace) -> None:
    """Connect to the other processes if the options name any."""
    from blip2_jax.parallel import hosts

    addresses = (
        arguments.coordinator_address,
        arguments.num_processes,
        arguments.process_id,
    )
    if arguments.multihost or addresses != (None, None, None):
        hosts.join(*addresses)


def abandon_other_processes() -> None:
    """Exit at once if other processes are connected: a normal exit waits for them."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        os._exit(1)
