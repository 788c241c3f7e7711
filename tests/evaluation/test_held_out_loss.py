"""Held-out losses: means over whole batches, compiled once per run."""

import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.evaluation.held_out_loss import mean_losses


def test_means_of_whole_batches_compiled_once():
    traced_keys = []

    def loss(params, batch, key):
        traced_keys.append(key)
        value = params * batch["features"].mean()
        return value, {"loss": value, "loss_itc": 2 * value, "temperature": value}

    def batches():
        for level, valid in ((1.0, True), (3.0, True), (100.0, False)):
            features = np.full((2, 1), level, np.float32)
            yield {"features": features, "valid": np.array([True, valid]), "_key": []}

    for scale in (1.0, 2.0):
        metrics = mean_losses(loss, jnp.float32(scale), batches())
        assert metrics["loss"] == pytest.approx(2 * scale)
        assert metrics["loss_itc"] == pytest.approx(4 * scale)
        assert "temperature" not in metrics
    assert traced_keys == [None]  # one trace, without dropout
