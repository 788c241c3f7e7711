"""Name tables: every kind of rule in both directions, and the reported names."""

import jax
import numpy as np
import pytest

from blip2_jax.convert.tables.name_table import (
    TRANSPOSE,
    Rule,
    leading_axes,
    linear,
    patch_kernel,
    split,
    to_ours,
    to_ours_complete,
    to_source,
)
from blip2_jax.nn.trees import flatten

L = 2
RULES = [
    Rule("word", "embeddings/word", aliases=("head.weight",)),
    Rule("token", "token", leading_axes(2)),
    Rule("conv", "patch/kernel", patch_kernel(2)),
    Rule("layer.{}.scale", "layer_{}/scale", layers=range(0, 4, 2)),
    *linear("h.{}.fc", "blocks/fc", layers=range(L), stack=True),
    Rule(
        "h.{}.qkv",
        tuple(f"blocks/{part}/kernel" for part in "qkv"),
        split(3, transpose=True),
        range(L),
        True,
    ),
]


def source(dtype=np.float32):
    rng = np.random.default_rng(0)
    array = lambda *shape: rng.normal(size=shape).astype(dtype)
    arrays = {
        "word": array(5, 3),
        "token": array(1, 1, 3),
        "conv": array(4, 3, 2, 2),
        "layer.0.scale": array(3),
        "layer.2.scale": array(3),
    }
    for i in range(L):
        arrays[f"h.{i}.fc.weight"] = array(4, 3)
        arrays[f"h.{i}.fc.bias"] = array(4)
        arrays[f"h.{i}.qkv"] = array(6, 3)
    return arrays | {"head.weight": arrays["word"]}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jax.numpy.bfloat16])
def test_round_trip_is_bit_exact(dtype):
    arrays = source(dtype)
    back = to_source(to_ours_complete(arrays, RULES), RULES)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array, name)


def test_layout_of_parameters():
    arrays = source()
    ours = flatten(to_ours_complete(arrays, RULES))
    assert ours["blocks/fc/kernel"].shape == (L, 3, 4)
    np.testing.assert_array_equal(ours["blocks/k/kernel"][1], arrays["h.1.qkv"][2:4].T)
    assert ours["token"].shape == (3,)
    assert {"layer_0/scale", "layer_2/scale"} <= ours.keys()
    # A matmul with flattened patches [row, column, channel] equals the convolution.
    patch = np.random.default_rng(1).normal(size=(2, 2, 3))
    expected = np.einsum("hwc,dchw->d", patch, arrays["conv"])
    np.testing.assert_allclose(patch.ravel() @ ours["patch/kernel"], expected, 1e-5)


def test_shapes_are_converted_without_values():
    ours = to_ours_complete(source(), RULES)
    shapes = jax.eval_shape(lambda params: to_source(params, RULES), ours)
    assert {n: s.shape for n, s in shapes.items()} == {
        n: a.shape for n, a in source().items()
    }


def test_missing_and_unknown_are_reported():
    arrays = source() | {"extra": np.ones(1), "buffer": np.ones(1)}
    del arrays["h.1.qkv"], arrays["head.weight"]
    converted = to_ours(arrays, RULES, ignore=["buffer"])
    assert converted.missing == tuple(f"blocks/{part}/kernel" for part in "qkv")
    assert converted.unused == ("extra",)
    with pytest.raises(ValueError, match="blocks/q/kernel"):
        to_ours_complete(arrays, RULES)


def test_transpose_is_its_own_inverse():
    array = np.arange(6).reshape(2, 3)
    assert TRANSPOSE.to_source(TRANSPOSE.to_ours((array,)))[0].shape == (2, 3)
