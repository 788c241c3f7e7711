"""The mesh, the table of shardings, the rows of a global batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from blip2_jax.parallel import sharding


def test_mesh_size_of_minus_one_takes_the_remaining_devices():
    assert sharding.make_mesh().shape == {"data": 8, "fsdp": 1, "tensor": 1}
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    assert mesh.shape == {"data": 2, "fsdp": 2, "tensor": 2}
    assert sharding.make_mesh(1, devices=jax.devices()[:1]).size == 1


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 2), (8, 2, 1)])
def test_mesh_that_does_not_cover_the_devices_is_an_error(sizes):
    with pytest.raises(ValueError, match="does not cover 8 devices"):
        sharding.make_mesh(*sizes)


@dataclasses.dataclass(frozen=True)
class SliceDevice:
    """A device with the attributes that mesh construction uses."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


@pytest.mark.parametrize(("sizes", "axis"), [((4, 2, 1), 0), ((1, 4, 2), 1)])
def test_slices_are_joined_by_the_axis_with_the_least_traffic(sizes, axis):
    devices = [SliceDevice(number, number % 2) for number in range(8)]
    placed = np.moveaxis(sharding.arrange_slices(sizes, devices), axis, 0)
    for half, index in zip(np.split(placed, 2), (0, 1), strict=True):
        assert {device.slice_index for device in half.ravel()} == {index}
    assert {device.id for device in placed.ravel()} == set(range(8))
    with pytest.raises(ValueError, match="on 2 slices: one of the two must be"):
        sharding.arrange_slices((1, 1, 8), devices)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("visual_encoder/blocks/mlp/up/kernel", (3, 8, 16), P(None, "fsdp", "tensor")),
        (
            "visual_encoder/blocks/mlp/down/kernel",
            (3, 16, 8),
            P(None, "tensor", "fsdp"),
        ),
        ("visual_encoder/blocks/mlp/up/bias", (3, 16), P(None, None)),
        (
            "language_model/blocks/attention/output/kernel",
            (2, 8, 8),
            P(None, "tensor", "fsdp"),
        ),
        ("language_model/embeddings/token", (10, 8), P("tensor", "fsdp")),
        ("language_model/embeddings/token", (11, 8), P(None, "fsdp")),
        ("qformer/layer_0/attention/query/kernel", (8, 8), P("fsdp", None)),
        ("qformer/layer_0/attention/query/kernel", (9, 8), P(None, None)),
        ("qformer/embeddings/word", (30523, 8), P(None, "fsdp")),
        ("temperature", (), P()),
    ],
)
def test_table(path, shape, spec):
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    assert sharding.parameter_spec(path, shape, mesh) == spec


def test_optimizer_state_is_sharded_like_its_parameters():
    params = {"qformer": {"head": {"dense": {"kernel": jnp.ones((8, 4))}}}}
    mesh = sharding.make_mesh(fsdp=8)
    state = jax.eval_shape(optax.adam(1.0).init, params)
    specs = {s.spec for s in jax.tree.leaves(sharding.tree_shardings(state, mesh))}
    assert specs == {P(), P("fsdp", None)}


@pytest.mark.parametrize(("size", "fits"), [(12, "8 or 16"), (3, "8 or 16")])
def test_indivisible_batch_size_suggests_two_others(size, fits):
    mesh = sharding.make_mesh(data=4, fsdp=2)
    with pytest.raises(ValueError, match=f"batch size {size}.*use {fits}"):
        sharding.check_batch_size(size, mesh)
    sharding.check_batch_size(16, mesh)
    with pytest.raises(ValueError, match=r"in 3 chunks each .* use 24 or 48"):
        sharding.check_batch_size(32, mesh, chunks=3)


def test_global_batch_leaves_out_host_entries():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    batch = sharding.make_global_batch(
        {
            "text_ids": np.arange(16, dtype=np.int32).reshape(8, 2),
            "position": np.arange(8),
            "_key": ["k"] * 8,
        },
        mesh,
    )
    assert batch.keys() == {"text_ids"}
    assert batch["text_ids"].sharding.spec == P(("data", "fsdp"))
    np.testing.assert_array_equal(batch["text_ids"], np.arange(16).reshape(8, 2))


def test_shard_tree_shards_host_arrays():
    mesh = sharding.make_mesh(fsdp=8)
    tree = {"qformer": {"kernel": np.arange(32.0, dtype=np.float32).reshape(8, 4)}}
    placed = sharding.shard_tree(tree, sharding.tree_shardings(tree, mesh))
    kernel = placed["qformer"]["kernel"]
    assert kernel.addressable_shards[3].data.shape == (1, 4)
    np.testing.assert_array_equal(kernel, tree["qformer"]["kernel"])


def test_rows_are_placed_like_parameters():
    mesh = sharding.make_mesh(data=4, fsdp=2)
    params = {"kernel": sharding.shard_tree(np.ones((8, 4)), sharding.replicated(mesh))}
    rows = {"ids": np.arange(16).reshape(16, 1), "few": np.arange(3)}
    placed = sharding.place_rows_like(params, rows)
    assert placed["ids"].sharding.spec == P(("data", "fsdp"))
    assert placed["few"].sharding.spec == P()
    jax.tree.map(np.testing.assert_array_equal, placed, rows)
    assert sharding.place_rows_like({"kernel": np.ones(3)}, rows) is rows


@pytest.mark.parametrize(
    ("stored", "shape", "expected"),
    [
        (P("fsdp", None), (16, 8), P(("data", "fsdp"), None)),
        (P("fsdp", None), (6, 8), P("fsdp", "data")),  # 8 parts do not divide 6
        (P(None, "fsdp", "tensor"), (3, 8, 8), P(None, ("data", "fsdp"), "tensor")),
        (P(), (), P()),
        (P(None), (8,), P("data")),
        (P(None), (7,), P(None)),
    ],
)
def test_storage_split_over_data_too(stored, shape, expected):
    mesh = sharding.make_mesh(4, 2, 1, devices=jax.devices()[:8])
    assert sharding.split_over_data(stored, shape, mesh) == expected
