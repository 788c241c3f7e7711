"""Sampling of hard negatives."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from blip2_jax.losses import hard_negatives, objectives


def test_hard_negatives_follow_the_softmax_and_spare_positives():
    similarity = jnp.log(jnp.array([[9.0, 1, 3, 9], [1, 9, 1, 1], [1] * 4, [1] * 4]))
    positives = hard_negatives.same_image(jnp.array([0, 1, 2, 0]))
    draw = lambda key: hard_negatives.sample_hard_negatives(
        key, similarity, similarity, positives
    )
    drawn = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000))
    first = np.bincount(drawn.text[:, 0], minlength=4) / 4000
    np.testing.assert_allclose(first, [0, 0.25, 0.75, 0], atol=0.03)
    weights = hard_negatives.negative_weights(similarity, positives)
    np.testing.assert_allclose(weights[0], [0, 0.25, 0.75, 0], rtol=1e-6)
    assert not np.asarray(positives)[np.arange(4), drawn.image].any()


def test_draws_do_not_depend_on_the_mesh():
    mesh = jax.make_mesh((8,), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    similarity = jax.random.normal(jax.random.key(0), (16, 16))
    draw = jax.jit(
        lambda s: hard_negatives.sample_hard_negatives(
            jax.random.key(1), s, s.T, jnp.eye(16, dtype=bool)
        )
    )
    one, eight = draw(similarity), draw(jax.device_put(similarity, rows))
    jax.tree.map(np.testing.assert_array_equal, one, eight)


def test_rows_without_a_negative_have_no_weight():
    positives = hard_negatives.same_image(jnp.array([3, 3]))
    valid = hard_negatives.has_negative(positives)
    assert not valid.any()
    negatives = hard_negatives.sample_hard_negatives(
        jax.random.key(0), jnp.ones((2, 2)), jnp.ones((2, 2)), positives
    )
    assert (negatives.image < 2).all()
    logits = jax.random.normal(jax.random.key(0), (2, 3, 2))
    matches = jnp.array([[1, 0, 0]] * 2)
    run = lambda x: objectives.itm_loss(x, matches, valid)[0]
    assert run(logits) == 0
    assert np.isfinite(jax.grad(run)(logits)).all()
