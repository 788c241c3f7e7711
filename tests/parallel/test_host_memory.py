"""Host memory: freed memory is returned, dispatch is synchronous, the option exists."""

import os
import subprocess
import sys

import jax
import pytest

from blip2_jax.parallel import host_memory, sharding

# A process that frees memory in many pieces and keeps it (Makefile's MALLOC_...).
HOLDING = """
import jax, numpy
from blip2_jax.parallel import host_memory
from blip2_jax.perf.meters import host_memory_bytes

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

# Prints whether a long program has finished when its call returns.
CALLING = """
import jax
from blip2_jax.parallel import host_memory

if {waits}:
    host_memory.disable_async_dispatch()
power = jax.jit(lambda x: x @ x @ x @ x @ x @ x)
x = jax.numpy.eye(1500)
power(x).block_until_ready()
print(power(x).is_ready())
"""


def printed(code: str, **environment: str) -> str:
    """Return the output of a new process."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc of Linux")
def test_freed_memory_is_returned_after_compilation():
    keeps = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}

    def given_back(listens: bool) -> int:
        code = HOLDING.format(listens=listens)
        return int(printed(code, JAX_PLATFORMS="cpu", **keeps))

    freed = 792 * 2**15 * 8
    assert given_back(listens=False) < 0.1 * freed
    assert given_back(listens=True) > 0.7 * freed


def test_a_program_finishes_before_the_next_starts():
    for waits in (True, False):
        code = CALLING.format(waits=waits)
        assert printed(code, JAX_PLATFORMS="cpu") == str(waits)


def test_low_memory_options_apply_to_cpus_only():
    options = host_memory.low_memory_compiler_options(sharding.make_mesh())
    assert options == host_memory._LOW_MEMORY_OPTIONS
    result = jax.jit(lambda x: x + 1, compiler_options=options)(1)
    assert int(result) == 2
