"""Captions by the Q-Former's decoder against the original, id for id.

There the start token [DEC] counts in maximum, minimum and penalty.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.generation import original
from blip2_jax.generation.programs import read_stage1, write_stage1
from tests.support import golden_stage1
from tests.support.tolerances import assert_ids

RUNS = {
    "greedy_min10_max30": {},
    "greedy_min1_max12": {},
    "beam3_min10_max30": {"num_beams": 3},
    "beam3_min3_max15": {"num_beams": 3},
    "beam5_min1_max20": {"num_beams": 5},
}


START_ID = golden_stage1.config().qformer.vocab_size - 1  # [DEC]


@jax.jit
def read(params, images):
    start = jnp.full((images.shape[0], 1), START_ID)
    return read_stage1(golden_stage1.model(), params, images, start)


@functools.partial(jax.jit, static_argnums=2)
def write(params, read, config):
    model = golden_stage1.model()
    return write_stage1(model, params, read, config, eos_id=3, pad_id=0)


@pytest.mark.parametrize("tag", RUNS)
def test_captions_equal_the_original(tag):
    golden = golden_stage1.load_case("itg_generate")
    _, least, most = tag.split("_")
    config = original(int(most[3:]), int(least[3:]), **RUNS[tag])
    params = golden_stage1.params()
    start = read(params, golden["image"].transpose(0, 2, 3, 1))
    found = write(params, start, config)
    assert_ids(found.ids[:, 0], golden[tag][:, 1:], tag)
    if tag + "_scores" in golden:
        np.testing.assert_allclose(
            found.scores[:, 0], golden[tag + "_scores"], rtol=1e-4, atol=1e-5
        )
