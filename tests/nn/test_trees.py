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


def test_everything_is_trained_without_rules():
    assert trees.split(TREE) == (TREE, {}, {})


@pytest.mark.parametrize("where", ["frozen", "carried"])
def test_rule_without_a_path_is_an_error(where):
    with pytest.raises(ValueError, match=rf"{where} rule '\^visual_tower/'.*ln_vision"):
        trees.split(TREE, **{where: ["^visual_tower/"]})


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="nothing to train"):
        trees.split(TREE, ["."])


def test_merge_refuses_a_path_twice():
    with pytest.raises(ValueError, match="ln_vision/scale is in two parts"):
        trees.merge(TREE, {"ln_vision": {"scale": 0}})
