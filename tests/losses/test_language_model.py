"""Initial parameters and loss of language models trained on text alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.losses.language_model import (
    initial_language_model,
    language_loss,
    sinusoids,
)
from blip2_jax.models.language.interface import build_language_model
from blip2_jax.models.sizes import OPTConfig, T5Config

OPT = OPTConfig(32, 2, 2, 64, vocab_size=50, max_positions=24, dropout=0.0)
T5 = T5Config(32, 2, 2, 64, head_width=16, vocab_size=50, dropout=0.0)
IDS = jax.random.randint(jax.random.key(0), (4, 8), 3, 50)
BATCH = {
    name: IDS if name.endswith("ids") else jnp.ones(IDS.shape, bool)
    for name in (
        "text_ids",
        "input_ids",
        "target_ids",
        "text_mask",
        "input_mask",
        "target_mask",
    )
}


def fresh(sizes):
    model = build_language_model(sizes, scan=False)
    make = lambda key: model.init(key, None, BATCH, method=model.training_logits)
    return model, jax.jit(make)(jax.random.key(1))["params"]


@pytest.mark.parametrize("sizes", [OPT, T5])
def test_matrices_begin_with_the_deviation_asked_for(sizes):
    _, params = fresh(sizes)
    scaled = initial_language_model(params, sizes, 0.1)
    leaves = jax.tree_util.tree_leaves_with_path(scaled)
    for (path, leaf), before in zip(leaves, jax.tree.leaves(params), strict=True):
        names = [entry.key for entry in path]
        if names[-1] in ("kernel", "token"):
            narrow = sizes is T5 and names[-2] == "query"
            expected = 0.1 / (4 if narrow else 1)
            assert abs(float(leaf.std()) / expected - 1) < 0.15, names
        elif names[-1] != "position":
            np.testing.assert_array_equal(leaf, before)
    assert initial_language_model(params, sizes, 0.02) is params


def test_products_of_sinusoids_depend_on_the_distance():
    table = sinusoids(20, 32)
    products = table @ table.T
    for offset in range(5):
        diagonal = jnp.diagonal(products, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-4)
    _, params = fresh(OPT)
    tables = initial_language_model(params, OPT, 0.1)["embeddings"]
    np.testing.assert_allclose(tables["position"].std(), 0.1, rtol=0.3)


def test_initial_loss_is_that_of_uniform_guesses():
    model, params = fresh(OPT)
    loss, metrics = jax.jit(
        lambda params: language_loss(model, {"language_model": params}, BATCH, None)
    )(params)
    np.testing.assert_allclose(loss, np.log(50), atol=0.2)
    assert set(metrics) == {"loss", "loss_lm", "tokens"}
