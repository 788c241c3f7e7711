"""Muon updates: comparison with optax, singular values, momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

from blip2_jax.training.muon import MOMENTUM, RMS, orthogonalise, scale_by_muon

SHAPES = {"tall": (32, 16), "wide": (16, 32), "square": (16, 16), "stacked": (3, 8, 4)}


def matrices(seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in SHAPES.items()
    }


def test_the_first_step_is_that_of_optax():
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    theirs = optax.contrib.scale_by_muon(
        beta=MOMENTUM, weight_dimension_numbers={name: axes for name in SHAPES}
    )
    gradients = matrices()
    updates = [
        make.update(gradients, make.init(gradients))[0]
        for make in (theirs, scale_by_muon())
    ]
    for name, shape in SHAPES.items():
        size = RMS * max(shape[-2:]) ** 0.5
        np.testing.assert_allclose(
            size * updates[0][name], updates[1][name], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", SHAPES)
def test_singular_values_come_close_to_one(name):
    values = np.linalg.svd(orthogonalise(matrices()[name]), compute_uv=False)
    assert values.min() > 0.65 and values.max() < 1.25


def test_momentum_looks_ahead():
    first, second = matrices(0), matrices(1)
    muon = scale_by_muon()
    _, state = muon.update(first, muon.init(first))
    updates, _ = muon.update(second, state)
    ahead = jax.tree.map(
        lambda old, new: new + MOMENTUM * (new + MOMENTUM * old), first, second
    )
    expected = RMS * 32**0.5 * orthogonalise(ahead["tall"])
    np.testing.assert_allclose(updates["tall"], expected, rtol=1e-4, atol=1e-5)
