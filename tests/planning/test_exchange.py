"""Programs for TPUs exchange hard negatives with constant traffic and memory."""

import math

import jax
import jax.numpy as jnp
import pytest

from blip2_jax.parallel import sharding
from blip2_jax.parallel.row_gather import gather_global_rows
from blip2_jax.planning.collectives import collectives
from blip2_jax.planning.topology import open_topology

pytest.importorskip("libtpu", reason="libtpu is not installed")

ROWS, ROW = 3, (257, 128)  # on each device


def compile_gather(slice_, **mesh):
    mesh = sharding.make_mesh(**mesh, devices=open_topology(slice_).devices)
    rows = ROWS * sharding.batch_shards(mesh)
    spread = sharding.batch_sharding(mesh)
    arrays = (
        jax.ShapeDtypeStruct((rows, *ROW), jnp.bfloat16, sharding=spread),
        jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=spread),
    )
    with jax.set_mesh(mesh):
        jitted = jax.jit(gather_global_rows, out_shardings=spread)
        return jitted.lower(*arrays).compile(), mesh


@pytest.mark.parametrize(
    ("slice_", "mesh"),
    [
        ("v5e:2x4", {"data": 8}),
        ("v5e:4x8", {"data": 32}),
        ("v5e:4x4", {"data": 4, "fsdp": 2, "tensor": 2}),
    ],
)
def test_a_device_sends_as_many_rows_as_it_has(slice_, mesh):
    compiled, mesh = compile_gather(slice_, **mesh)
    # The indices are gathered too, a few bytes.
    found = [c for c in collectives(compiled.as_text(), mesh.size) if c.bytes > 4000]
    assert [c.kind for c in found] == ["ragged-all-to-all"]
    row = 2 * math.prod(ROW)
    assert (found[0].bytes, found[0].times) == (row, ROWS)
    assert found[0].group == sharding.batch_shards(mesh)
    assert found[0].sent_bytes < ROWS * row
    shard = ROWS * row * 264 / 257  # rows are stored in whole tiles
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * shard
