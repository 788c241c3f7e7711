"""Files of hard negatives: a broken line is named, because that step would sample."""

import numpy as np
import pytest

from blip2_jax.parallel.files import FileFormatError
from blip2_jax.training import replay

LINE = '{"step": 1, "image": [1, 0], "text": [1, 0]}\n'


def test_negatives_are_read_by_step(tmp_path):
    path = tmp_path / "negatives.jsonl"
    path.write_text(LINE)
    negatives = replay.read(str(path))
    assert list(negatives) == [1]
    np.testing.assert_array_equal(negatives[1].image, [1, 0])


@pytest.mark.parametrize(
    "broken", ['{"step": 2, "im', "3", '{"step": 2}', '{"step": 2, "image": "a"}']
)
def test_a_broken_line_is_named(tmp_path, broken):
    path = tmp_path / "negatives.jsonl"
    path.write_text(LINE + broken)
    with pytest.raises(FileFormatError, match=r"negatives\.jsonl, line 2 "):
        replay.read(str(path))
