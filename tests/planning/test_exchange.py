"""Programs for TPUs exchange hard negatives with little traffic and memory."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from blip2_jax.parallel import sharding
from blip2_jax.parallel.row_gather import gather_global_rows
from blip2_jax.planning.collectives import collectives
from blip2_jax.planning.topology import open_topology
from blip2_jax.training.step_plan import choose_exchange

pytest.importorskip("libtpu", reason="libtpu is not installed")

ROWS, ROW = 3, (257, 128)  # on each device
BYTES = 2 * math.prod(ROW)  # of a row


def compile_gather(slice_, **mesh):
    """Compile the exchange that training chooses; list its larger collectives."""
    mesh = sharding.make_mesh(**mesh, devices=open_topology(slice_).devices)
    rows = ROWS * sharding.batch_shards(mesh)
    spread = sharding.batch_sharding(mesh)
    arrays = (
        jax.ShapeDtypeStruct((rows, *ROW), jnp.bfloat16, sharding=spread),
        jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=spread),
    )
    gather = functools.partial(gather_global_rows, exchange=choose_exchange(mesh))
    with jax.set_mesh(mesh):
        compiled = jax.jit(gather, out_shardings=spread).lower(*arrays).compile()
    found = collectives(compiled.as_text(), mesh.size)
    return compiled, [each for each in found if each.bytes > 4000]  # not of indices


@pytest.mark.parametrize(
    ("slice_", "mesh", "group"),
    [
        ("v5e:2x4", {"data": 8}, 8),
        ("v6e:4x8", {"data": 32}, 32),
        ("v5p:2x2x4", {"data": 4, "fsdp": 2, "tensor": 2}, 8),
    ],
)
def test_a_device_sends_as_many_rows_as_it_has(slice_, mesh, group):
    compiled, (exchange,) = compile_gather(slice_, **mesh)
    assert exchange.kind == "ragged-all-to-all"
    assert (exchange.bytes, exchange.times, exchange.group) == (BYTES, ROWS, group)
    assert exchange.sent_bytes < ROWS * BYTES
    shard = ROWS * BYTES * 264 / 257  # rows are stored in whole tiles
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * shard


def test_a_large_slice_of_v5e_uses_a_grid():
    _, found = compile_gather("v5e:4x8", data=32)  # 8 lines of 4
    assert {each.kind for each in found} == {"collective-permute", "all-to-all"}
    assert sum(each.sent_bytes for each in found) == (7 + 3) * ROWS * BYTES
