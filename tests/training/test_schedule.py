"""The learning rate schedule."""

import json

import numpy as np
import pytest

from blip2_jax.training.schedule import make_schedule

OPTIONS = {
    "learning_rate": 1e-4,
    "final_learning_rate": 1e-5,
    "warmup_steps": 100,
    "warmup_start_learning_rate": 1e-6,
}


def test_warmup_is_linear_and_the_cosine_reaches_its_ends():
    rate = make_schedule(OPTIONS, 1100)
    np.testing.assert_allclose(rate(0), 1e-6, rtol=1e-6)
    np.testing.assert_allclose(rate(50), (1e-6 + 1e-4) / 2, rtol=1e-6)
    np.testing.assert_allclose(rate(100), 1e-4, rtol=1e-6)
    np.testing.assert_allclose(rate(600), (1e-4 + 1e-5) / 2, rtol=1e-5)
    np.testing.assert_allclose(rate(1100), 1e-5, rtol=1e-5)
    np.testing.assert_allclose(rate(5000), 1e-5, rtol=1e-5)


def test_warmup_equals_the_originals(goldens):
    golden = json.loads((goldens / "misc/lr_schedules.json").read_text())
    rows = golden["pretrain_stage1"]["epoch_step_lr"]
    rate = make_schedule(OPTIONS | {"warmup_steps": 5000}, 250_000)
    for epoch, step, expected in rows:
        if epoch == 0 and step <= 5000:
            np.testing.assert_allclose(rate(step), expected, rtol=1e-6)


def test_no_warmup():
    rate = make_schedule(OPTIONS | {"warmup_steps": 0}, 10)
    np.testing.assert_allclose(rate(0), 1e-4, rtol=1e-6)


def test_warmup_as_long_as_the_run_is_an_error():
    with pytest.raises(ValueError, match="warmup_steps is 100"):
        make_schedule(OPTIONS, 100)
