"""The ring gather equals indexing of the global batch, with bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from blip2_jax.parallel import row_gather


def _mesh(data: int, fsdp: int, tensor: int):
    axes = ("data", "fsdp", "tensor")
    return jax.make_mesh(
        (data, fsdp, tensor),
        axes,
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[: data * fsdp * tensor],
    )


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (4, 1, 2), (1, 1, 8)])
def test_ring_equals_indexing(shape):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(16, 3, 5)).astype(np.float32)
    index = rng.integers(0, 16, 16).astype(np.int32)
    mesh = _mesh(*shape)
    spec = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        placed = jax.device_put(rows, spec), jax.device_put(index, spec)
        fetched = jax.jit(row_gather.gather_global_rows, out_shardings=spec)(*placed)
    np.testing.assert_array_equal(fetched, rows[index])


def test_gradients_flow_to_the_source_rows():
    rows = jnp.arange(8.0)[:, None]
    index = jnp.asarray([1, 1, 0, 3, 3, 3, 7, 0])
    weight = jnp.arange(1.0, 9.0)[:, None]

    def loss(rows):
        return jnp.sum(row_gather.gather_global_rows(rows, index) * weight)

    whole = jax.grad(loss)(rows)
    mesh = _mesh(4, 2, 1)
    with jax.set_mesh(mesh):
        spec = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        shared = jax.jit(jax.grad(loss))(jax.device_put(rows, spec))
    np.testing.assert_array_equal(shared, whole)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_memory_does_not_depend_on_the_number_of_shards(shards):
    """Temporary memory is the passed shard and its copy."""
    mesh = _mesh(shards, 1, 1)
    spec = NamedSharding(mesh, PartitionSpec("data"))
    rows = jax.ShapeDtypeStruct((8 * shards, 1024), jnp.float32, sharding=spec)
    index = jax.ShapeDtypeStruct((8 * shards,), jnp.int32, sharding=spec)
    with jax.set_mesh(mesh):
        compiled = (
            jax.jit(row_gather.gather_global_rows, out_shardings=spec)
            .lower(rows, index)
            .compile()
        )
    shard = 8 * 1024 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 2.1 * shard
    assert "all-gather" not in compiled.as_text()


def test_without_a_mesh_rows_are_indexed():
    rows = jnp.arange(6.0)
    index = jnp.asarray([5, 0, 0, 1, 2, 2])
    np.testing.assert_array_equal(
        row_gather.gather_global_rows(rows, index), rows[index]
    )
