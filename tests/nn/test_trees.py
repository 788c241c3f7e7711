"""Parameter trees split and merged by path."""

import pytest

from blip2_jax.nn import trees

TREE = {
    "visual_encoder": {"blocks": {"kernel": 1}, "class_token": 2},
    "ln_vision": {"scale": 3},
    "qformer": {"layer_0": {"text_mlp": {"kernel": 4}, "query_mlp": {"kernel": 5}}},
}


def test_parts_are_disjoint_and_complete():
    parts = trees.split(TREE, ["^visual_encoder/"], ["/text_mlp/"])
    assert trees.flatten(parts.frozen) == {
        "visual_encoder/blocks/kernel": 1,
        "visual_encoder/class_token": 2,
    }
    assert trees.flatten(parts.carried) == {"qformer/layer_0/text_mlp/kernel": 4}
    assert trees.flatten(parts.trainable) == {
        "ln_vision/scale": 3,
        "qformer/layer_0/query_mlp/kernel": 5,
    }
    assert trees.merge(*parts) == TREE


def test_all_parameters_are_trained_without_patterns():
    assert trees.split(TREE) == (TREE, {}, {})


@pytest.mark.parametrize("name", ["frozen", "carried"])
def test_a_pattern_without_a_match_is_an_error(name):
    with pytest.raises(ValueError, match=rf"{name} rule '\^visual_tower/'.*ln_vision"):
        trees.split(TREE, **{name: ["^visual_tower/"]})


def test_no_trainable_parameter_is_an_error():
    with pytest.raises(ValueError, match="nothing to train"):
        trees.split(TREE, ["."])


def test_merging_a_path_twice_is_an_error():
    with pytest.raises(ValueError, match="ln_vision/scale is in two parts"):
        trees.merge(TREE, {"ln_vision": {"scale": 0}})
