"""LAVIS's stage-1 table: bit-exact round trip, complete at every released size."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from blip2_jax.convert.tables import lavis, name_table
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.presets import preset
from blip2_jax.nn import trees
from tests.support.golden_stage1 import STAGE1, load_params, rules
from tests.support.goldens import GOLDENS

PRESETS = ["pretrain", "pretrain_vitL", "coco", "coco_vitL"]


def test_round_trip_is_bit_exact():
    source = load_file(STAGE1 / "weights.safetensors")
    back = name_table.to_source(load_params("weights.safetensors"), rules())
    assert back.keys() | {lavis.POSITION_IDS} == source.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, source[name], name)


@pytest.mark.parametrize("name", PRESETS)
def test_full_size_names_and_shapes(name):
    config = preset(name)
    model, key = Blip2Stage1(config), jax.random.key(0)
    params = jax.eval_shape(lambda: init_params(model, key))
    table = lavis.stage1_rules(config)
    source = jax.eval_shape(lambda p: name_table.to_source(p, table), params)
    shapes = {n: list(s.shape) for n, s in source.items()}
    shapes |= {n: list(a.shape) for n, a in lavis.position_ids(config.qformer).items()}
    expected = json.loads((GOLDENS / f"keys_{name}.json").read_text())
    assert shapes == expected

    paths = {path for rule in table for group in rule.target_paths() for path in group}
    assert paths == trees.flatten(params).keys()
    summary = json.loads((GOLDENS / "keys_summary.json").read_text())[name]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == summary["params"]
