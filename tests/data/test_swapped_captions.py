"""A source with wrong captions."""

import numpy as np
import pytest

from blip2_jax.data.sources.registry import build_source

SHAPES = {"kind": "shapes", "split": "train", "size": 12, "count": 1}


def test_some_records_have_the_captions_of_others():
    spec = {"kind": "swapped_captions", "of": SHAPES, "share": 0.5, "seed": 1}
    swapped, plain = build_source(spec), build_source(SHAPES)
    assert len(swapped) == 12 and swapped.group_size == plain.group_size
    wrong = [index for index in range(12) if swapped.is_swapped(index)]
    assert len(wrong) == 6
    for index in range(12):
        own = swapped.record(index).captions == plain.record(index).captions
        assert own == (index not in wrong)
        assert swapped.record(index).key == plain.record(index).key
        np.testing.assert_array_equal(
            swapped.load_image(index), plain.load_image(index)
        )
    captions = [source.record(i).captions for source in (swapped, plain) for i in wrong]
    assert sorted(captions[:6]) == sorted(captions[6:])
    with pytest.raises(ValueError, match="share must be between 0 and 1"):
        build_source(spec | {"share": 1.5})
