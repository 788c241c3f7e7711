"""The image and text towers trained together by token-wise contrast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.models.sizes import ViTConfig
from blip2_jax.models.vision.dual_encoder import (
    PATCH_STD,
    POSITION_STD,
    DualEncoder,
    TextTowerConfig,
    init_dual_encoder,
    window_means,
)

VISION = ViTConfig(16, 1, 2, 32, image_size=8, patch_size=4)


def make(depth):
    text = TextTowerConfig(vocab_size=20, width=16, depth=depth, heads=2, mlp_dim=32)
    model = DualEncoder(VISION, text, projection_dim=8, scan=False)
    return model, init_dual_encoder(model, jax.random.key(0), 0.2)


@pytest.mark.parametrize("depth, same", [(0, True), (1, False)])
def test_words_without_a_transformer_have_no_order(depth, same):
    model, params = make(depth)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    ids = jnp.array([[3, 7, 5, 0], [5, 3, 7, 0]])
    mask = ids > 0
    scores = model.apply({"params": params}, images, ids, mask)
    assert scores.shape == (2, 2) and bool((abs(scores) <= 1).all())
    assert np.allclose(scores[:, 0], scores[:, 1], atol=1e-6) == same


def test_a_window_averages_the_words_around():
    words = jnp.arange(1.0, 7.0).reshape(1, 6, 1)
    mask = jnp.array([[1, 1, 1, 1, 1, 0]], bool)
    means = window_means(words, mask, 1)[0, :, 0]
    np.testing.assert_allclose(means[:5], [1.5, 2, 3, 4, 4.5], atol=1e-6)
    np.testing.assert_array_equal(window_means(words, mask, 0), words)


def test_padding_changes_nothing():
    model, params = make(1)
    images = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    ids, mask = jnp.array([[3, 7, 0, 0], [3, 7, 9, 9]]), jnp.arange(4)[None] < 2
    scores = model.apply({"params": params}, images, ids, jnp.repeat(mask, 2, axis=0))
    np.testing.assert_allclose(scores[0, 0], scores[0, 1], atol=1e-6)


def test_initial_deviations():
    _, params = make(1)
    kernel = params["vision_projection"]["kernel"]
    np.testing.assert_allclose(kernel.std(), 0.2, rtol=0.2)
    patches = params["visual_encoder"]["patch_embedding"]["kernel"]
    np.testing.assert_allclose(patches.std(), PATCH_STD, rtol=0.2)
    positions = params["visual_encoder"]["position_embedding"]
    np.testing.assert_allclose(positions.std(), POSITION_STD, rtol=0.2)
