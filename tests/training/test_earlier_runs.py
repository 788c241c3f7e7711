"""Runs that version 0.1.0 stopped after step 8 open, and continue as it did.

`fixtures/` holds both runs and what that version computed in steps 9 to 12: the losses,
and the sum of absolute values of every trained array.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

import blip2_jax
from benchmarks.soak import KEPT, TRAIN, flat, losses, run
from blip2_jax.training.checkpoints import Checkpoints
from tests.support.processes import SUPPORT

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())


def unpack(task: str, directory: pathlib.Path) -> pathlib.Path:
    with tarfile.open(FIXTURES / f"{task}.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    return directory / task


@pytest.mark.parametrize(
    "task", ["stage1", pytest.param("opt", marks=pytest.mark.slow)]
)
def test_a_run_continues(tmp_path, task):
    directory, expected = unpack(task, tmp_path), EXPECTED[task]
    changes = ("steps=12", "checkpoint.every=4", "data.workers=0")
    run(TRAIN, f"{SUPPORT / 'tiny_experiment.py'}:{task}", directory, *changes)
    later = {str(step): loss for step, loss in losses(directory).items() if step > 8}
    assert later.keys() == expected["losses"].keys()
    np.testing.assert_allclose(
        list(later.values()), list(expected["losses"].values()), rtol=1e-5
    )
    arrays = flat(Checkpoints(directory, read_only=True).read(12, KEPT).trees)
    for name, total in expected["sums"].items():
        # The softmax cancels a key bias: its gradient, and so its value, is rounding
        # noise that differs between compilers.
        is_noise = name.endswith("/key/bias")
        assert not is_noise or total < 1e-5
        np.testing.assert_allclose(
            np.abs(arrays[name]).sum(), total, rtol=1e-4, atol=1e-5 if is_noise else 0
        )


def test_a_run_is_loaded(tmp_path):
    model = blip2_jax.load(unpack("opt", tmp_path))
    (caption,) = model.caption(np.zeros((32, 32, 3), np.uint8), max_new_tokens=3)
    assert isinstance(caption, str)
