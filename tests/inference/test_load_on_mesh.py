"""A model on a mesh gives the same results as on one device."""

import jax
import numpy as np
import pytest

import blip2_jax
from blip2_jax.convert.native_folder import write_folder
from blip2_jax.inference.load import open_model
from blip2_jax.parallel import sharding
from tests.support.tiny_runs import make_run
from tests.support.tolerances import assert_values

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def pictures(count):
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, 32, 32, 3), np.uint8))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {
        stage: make_run(tmp_path_factory.mktemp(stage), stage).directory
        for stage in ("stage1", "stage2")
    }


def test_captions_are_the_same(runs):
    one = blip2_jax.load(runs["stage2"])
    many = blip2_jax.load(runs["stage2"], mesh=MESH)
    settings = {"num_beams": 1, "sample": True, "max_new_tokens": 6}
    captions = one.caption(pictures(4), **settings)
    assert many.caption(pictures(4), **settings) == captions
    assert len(set(captions)) == 4  # rows sample with different keys


def test_scores_are_the_same(runs):
    one = blip2_jax.load(runs["stage1"])
    many = blip2_jax.load(runs["stage1"], mesh=MESH)
    texts = ["a red ring", "a blue star left of it"] * 2
    pairs = zip(
        many.match(pictures(4), texts), one.match(pictures(4), texts), strict=True
    )
    for ours, theirs in pairs:
        assert_values(ours, theirs)


def test_rows_are_sharded_if_they_divide():
    rows = np.arange(8)
    assert sharding.place_rows_like({"w": jax.numpy.ones(3)}, rows) is rows
    whole = sharding.replicated(sharding.make_mesh(**MESH))
    params = {"w": jax.device_put(np.ones(3), whole)}
    sharded = sharding.place_rows_like(params, rows)
    assert {shard.data.shape for shard in sharded.addressable_shards} == {(2,)}
    assert sharding.place_rows_like(params, rows[:3]).is_fully_replicated


def test_parameters_of_a_folder_are_sharded(runs, tmp_path):
    write_folder(open_model(runs["stage2"]), tmp_path / "folder")
    model = blip2_jax.load(tmp_path / "folder", mesh=MESH)
    kernel = model.params["language_model"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1, 8, 16)
    assert kernel.sharding.num_devices == 8
    alone = blip2_jax.load(tmp_path / "folder")
    for ours, theirs in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(alone.params), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_mesh_of_another_size_is_an_error(runs):
    with pytest.raises(ValueError, match="does not cover 8 devices"):
        blip2_jax.load(runs["stage1"], mesh={"data": 3})
    with pytest.raises(TypeError, match="model"):
        blip2_jax.load(runs["stage1"], mesh={"model": 8})
