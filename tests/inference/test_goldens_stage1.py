"""Captions by the Q-Former, token for token equal to the original's.

The original counts the start token [DEC] in lengths and penalties.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.generation import from_lavis_lengths
from blip2_jax.inference.decoding_program import decode_tokens
from blip2_jax.inference.qformer_programs import prefill_qformer
from tests.support import golden_stage1
from tests.support.tolerances import assert_ids

SETTINGS = {
    "greedy_min10_max30": {},
    "greedy_min1_max12": {},
    "beam3_min10_max30": {"num_beams": 3},
    "beam3_min3_max15": {"num_beams": 3},
    "beam5_min1_max20": {"num_beams": 5},
}


@pytest.mark.parametrize("tag", SETTINGS)
def test_captions_equal_the_original(tag):
    golden = golden_stage1.load_case("itg_generate")
    _, min_length, max_length = tag.split("_")
    config = from_lavis_lengths(
        int(max_length[3:]), int(min_length[3:]), **SETTINGS[tag]
    )
    model, params = golden_stage1.model(), golden_stage1.params()
    images = golden["image"].transpose(0, 2, 3, 1)
    dec_id = golden_stage1.config().qformer.vocab_size - 1
    start_ids = jnp.full((images.shape[0], 1), dec_id)
    logits, prefix = prefill_qformer(model, params, images, start_ids)
    decoded = decode_tokens(
        model, "qformer", params, logits, prefix, config, eos_id=3, pad_id=0
    )
    assert_ids(decoded.ids[:, 0], golden[tag][:, 1:], tag)
    if tag + "_scores" in golden:
        np.testing.assert_allclose(
            decoded.scores[:, 0], golden[tag + "_scores"], rtol=1e-4, atol=1e-5
        )
