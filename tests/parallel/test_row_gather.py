"""Both exchanges equal indexing of the global batch, with bounded memory."""

import functools

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


def emulate(operand, output, starts, sizes, targets, axis_name):
    """Do what `jax.lax.ragged_all_to_all` documents, with all arrays on all devices."""
    operands, starts, sizes, targets = (
        jax.lax.all_gather(array, axis_name)
        for array in (operand, starts, sizes, targets)
    )
    receiver = jax.lax.axis_index(axis_name)
    for sender in range(operands.shape[0]):
        place = jnp.arange(output.shape[0]) - targets[sender, receiver]
        sent = operands[sender][starts[sender, receiver] + place]
        written = (place >= 0) & (place < sizes[sender, receiver])
        written = written.reshape(-1, *[1] * (output.ndim - 1))
        output = jnp.where(written, sent, output)
    return output


@pytest.fixture(params=["ring", "grid", "ragged"])
def exchange(request, monkeypatch):
    """Every exchange; XLA's CPU backend lacks the collective of the last."""

    def ragged_all_to_all(
        operand,
        output,
        input_offsets,
        send_sizes,
        output_offsets,
        recv_sizes,
        *,
        axis_name,
    ):
        expected = jax.lax.all_to_all(send_sizes, axis_name, 0, 0, tiled=True)
        output = emulate(
            operand, output, input_offsets, send_sizes, output_offsets, axis_name
        )
        # Wrong sizes to receive would hang or corrupt a TPU: make them visible.
        return jnp.where((expected == recv_sizes).all(), output, -output - 1)

    monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_all_to_all)
    return request.param


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (4, 1, 2), (1, 1, 8)])
def test_exchange_equals_indexing(shape, exchange):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(16, 3, 5)).astype(np.float32)
    index = rng.integers(0, 16, 16).astype(np.int32)
    mesh = _mesh(*shape)
    spec = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        placed = jax.device_put(rows, spec), jax.device_put(index, spec)
        gather = functools.partial(row_gather.gather_global_rows, exchange=exchange)
        fetched = jax.jit(gather, out_shardings=spec)(*placed)
    np.testing.assert_array_equal(fetched, rows[index])


def test_gradients_flow_to_the_source_rows(exchange):
    rows = jnp.arange(8.0)[:, None]
    index = jnp.asarray([1, 1, 0, 3, 3, 3, 7, 0])
    weight = jnp.arange(1.0, 9.0)[:, None]

    def loss(rows):
        drawn = row_gather.gather_global_rows(rows, index, exchange)
        return jnp.sum(drawn * weight)

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


def test_a_collective_that_delivers_wrong_rows_is_refused(exchange, monkeypatch):
    mesh = _mesh(4, 2, 1)
    row_gather.verify_exchange(mesh, exchange)
    row_gather.verify_exchange(_mesh(1, 1, 8), exchange)  # nothing is exchanged
    right = jax.lax.ragged_all_to_all

    def first_rows(*args, input_offsets, **others):
        return right(*args, input_offsets=input_offsets * 0, **others)

    monkeypatch.setattr(jax.lax, "ragged_all_to_all", first_rows)
    if exchange == "ragged":
        with pytest.raises(ValueError, match=r"config\.objective\.exchange=grid"):
            row_gather.verify_exchange(mesh, exchange)


@pytest.mark.parametrize(("shards", "columns"), [(1, 1), (7, 1), (8, 2), (256, 16)])
def test_columns_of_the_grid(shards, columns):
    assert row_gather._columns(shards) == columns
