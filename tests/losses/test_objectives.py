"""Loss functions against torch's numbers and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.losses import hard_negatives, objectives


def test_label_smoothing_equals_torch(goldens):
    case = np.load(goldens / "misc" / "label_smoothing.npz")
    mask = jnp.asarray(case["labels"] != -100)
    targets = jnp.where(mask, jnp.asarray(case["labels"]), 0)
    loss = objectives.lm_loss(
        jnp.asarray(case["logits"])[None], targets[None], mask[None], 0.1
    )
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-5)


def test_means_within_shards():
    values = jnp.array([1.0, 2, 3, 4])
    weights = jnp.array([1.0, 0, 1, 1])
    np.testing.assert_allclose(objectives.weighted_mean(values, weights), 8 / 3)
    np.testing.assert_allclose(objectives.weighted_mean(values, weights, 2), 2.25)
    assert objectives.weighted_mean(values, jnp.zeros(4)) == 0
    with pytest.raises(ValueError, match="3 shards"):
        objectives.weighted_mean(values, weights, 3)


def test_itc_shares_the_target_among_pairs_of_one_image():
    logits = jax.random.normal(jax.random.key(0), (3, 3))
    positives = hard_negatives.same_image(jnp.array([5, 5, 7]))
    loss = objectives.itc_loss(logits, logits.T, positives, 0.1)
    targets = 0.9 * np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]) + 0.1 / 3
    rows = lambda x: -(targets * np.asarray(jax.nn.log_softmax(x))).sum(1).mean()
    np.testing.assert_allclose(loss, (rows(logits) + rows(logits.T)) / 2, rtol=1e-6)


def test_itm_accuracy_counts_valid_rows():
    logits = jnp.array([[[0.0, 1], [1, 0], [0, 1]], [[1, 0], [0, 1], [0, 1]]])
    matches = jnp.array([[1, 0, 0]] * 2)
    _, accuracy = objectives.itm_loss(logits, matches, jnp.array([True, False]))
    np.testing.assert_allclose(accuracy, 2 / 3, rtol=1e-6)
