"""Tests of host_memory: freed memory really goes back, and the option is known here."""

import os
import subprocess
import sys

import jax
import pytest

from blip2_jax.parallel import host_memory, sharding

# A process that keeps what it frees, as a Makefile's MALLOC_... asks, in many pieces.
HOLDING = """
import jax, numpy
from blip2_jax import host_memory
from blip2_jax.training.meters import host_memory_bytes

if {listens}:
    host_memory._MIN_COMPILE_S = 0.0
    host_memory.trim_memory_after_compiling()
pieces = [numpy.ones(2**15) for _ in range(800)]
kept = pieces[::100]
before = host_memory_bytes()
del pieces
jax.jit(lambda x: x * 3)(2.0).block_until_ready()
print(before - host_memory_bytes())
"""

# Says whether a program that takes a while is over when its call returns.
CALLING = """
import jax
from blip2_jax import host_memory

if {waits}:
    host_memory.disable_async_dispatch()
power = jax.jit(lambda x: x @ x @ x @ x @ x @ x)
x = jax.numpy.eye(1500)
power(x).block_until_ready()
print(power(x).is_ready())
"""


def printed(code: str, **environment: str) -> str:
    """What a process of its own says."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc of Linux")
def test_what_was_freed_goes_back_after_compiling():
    keeps = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}

    def given_back(listens: bool) -> int:
        code = HOLDING.format(listens=listens)
        return int(printed(code, JAX_PLATFORMS="cpu", **keeps))

    freed = 792 * 2**15 * 8
    assert given_back(listens=False) < 0.1 * freed
    assert given_back(listens=True) > 0.7 * freed


def test_a_program_is_over_before_the_next_begins():
    for waits in (True, False):
        code = CALLING.format(waits=waits)
        assert printed(code, JAX_PLATFORMS="cpu") == str(waits)


def test_a_thrifty_order_is_for_programs_of_a_cpu():
    options = host_memory.low_memory_compiler_options(sharding.make_mesh())
    assert options == host_memory._LOW_MEMORY_OPTIONS
    found = jax.jit(lambda x: x + 1, compiler_options=options)(1)
    assert int(found) == 2
