"""The losses of an evaluation: means of whole batches, compiled once a run."""

import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.evaluation.stage1 import evaluate_losses


def test_means_of_whole_batches_compiled_once():
    traces = []

    def loss(params, batch, key):
        traces.append(key)
        value = params * batch["features"].mean()
        return value, {"loss": value, "loss_itc": 2 * value, "temperature": value}

    def batches():
        for level, valid in ((1.0, True), (3.0, True), (100.0, False)):
            features = np.full((2, 1), level, np.float32)
            yield {"features": features, "valid": np.array([True, valid]), "_key": []}

    for scale in (1.0, 2.0):
        found = evaluate_losses(loss, jnp.float32(scale), batches())
        assert found["loss"] == pytest.approx(2 * scale)
        assert found["loss_itc"] == pytest.approx(4 * scale)
        assert "temperature" not in found
    assert traces == [None]  # one trace, without dropout
