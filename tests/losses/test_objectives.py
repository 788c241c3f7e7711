"""Losses against torch's numbers and by hand; hard negatives and their rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from blip2_jax.losses import objectives


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


def test_similarity_is_the_best_query():
    queries = jnp.array([[[1.0, 0], [0, 1]], [[-1, 0], [0, -1]]])
    texts = jnp.array([[1.0, 0], [0.6, 0.8]])
    expected = [[1, 0.8], [0, -0.6]]
    np.testing.assert_allclose(objectives.similarities(queries, texts), expected)


def test_query_by_query_is_the_same_with_its_gradients():
    keys = jax.random.split(jax.random.key(0), 3)
    queries = jax.random.normal(keys[0], (6, 5, 8))
    texts, weights = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys[1:], ((7, 8), (6, 7)), strict=True)
    )

    def of(function):
        return jax.value_and_grad(
            lambda q, t: (function(q, t) * weights).sum(), argnums=(0, 1)
        )(queries, texts)

    close = lambda ours, plain: np.testing.assert_allclose(ours, plain, 2e-6, 1e-6)
    jax.tree.map(close, of(objectives.best_query), of(objectives.similarities))


def test_scores_of_all_queries_are_not_held(monkeypatch):
    shape = jax.ShapeDtypeStruct

    def temporaries(rows):
        gradient = jax.grad(lambda q, t: objectives.similarities(q, t).sum(), (0, 1))
        given = shape((rows, 32, 16), "float32"), shape((rows, 16), "float32")
        compiled = jax.jit(gradient).lower(*given).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    rows = 1024  # 2 * MOST_SCORES
    assert temporaries(rows) < 4 * 32 * rows * rows / 4
    monkeypatch.setattr(objectives, "MOST_SCORES", 2**30)
    assert temporaries(rows) > 4 * 32 * rows * rows / 4


def test_itc_shares_the_target_among_pairs_of_one_image():
    logits = jax.random.normal(jax.random.key(0), (3, 3))
    positives = objectives.same_image(jnp.array([5, 5, 7]))
    loss = objectives.itc_loss(logits, logits.T, positives, 0.1)
    targets = 0.9 * np.array([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]) + 0.1 / 3
    rows = lambda x: -(targets * np.asarray(jax.nn.log_softmax(x))).sum(1).mean()
    np.testing.assert_allclose(loss, (rows(logits) + rows(logits.T)) / 2, rtol=1e-6)


def test_hard_negatives_follow_the_softmax_and_spare_positives():
    similarity = jnp.log(jnp.array([[9.0, 1, 3, 9], [1, 9, 1, 1], [1] * 4, [1] * 4]))
    positives = objectives.same_image(jnp.array([0, 1, 2, 0]))
    draw = lambda key: objectives.sample_hard_negatives(
        key, similarity, similarity, positives
    )
    drawn = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000))
    first = np.bincount(drawn.text[:, 0], minlength=4) / 4000
    np.testing.assert_allclose(first, [0, 0.25, 0.75, 0], atol=0.03)
    weights = objectives.negative_weights(similarity, positives)
    np.testing.assert_allclose(weights[0], [0, 0.25, 0.75, 0], rtol=1e-6)
    assert not np.asarray(positives)[np.arange(4), drawn.image].any()


def test_draws_do_not_depend_on_the_mesh():
    mesh = jax.make_mesh((8,), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    similarity = jax.random.normal(jax.random.key(0), (16, 16))
    draw = jax.jit(
        lambda s: objectives.sample_hard_negatives(
            jax.random.key(1), s, s.T, jnp.eye(16, dtype=bool)
        )
    )
    one, eight = draw(similarity), draw(jax.device_put(similarity, rows))
    jax.tree.map(np.testing.assert_array_equal, one, eight)


def test_rows_without_a_negative_have_no_weight():
    positives = objectives.same_image(jnp.array([3, 3]))
    valid = objectives.has_negative(positives)
    assert not valid.any()
    negatives = objectives.sample_hard_negatives(
        jax.random.key(0), jnp.ones((2, 2)), jnp.ones((2, 2)), positives
    )
    assert (negatives.image < 2).all()
    logits = jax.random.normal(jax.random.key(0), (2, 3, 2))
    matches = jnp.array([[1, 0, 0]] * 2)
    run = lambda x: objectives.itm_loss(x, matches, valid)[0]
    assert run(logits) == 0
    assert np.isfinite(jax.grad(run)(logits)).all()


def test_itm_accuracy_counts_valid_rows():
    logits = jnp.array([[[0.0, 1], [1, 0], [0, 1]], [[1, 0], [0, 1], [0, 1]]])
    matches = jnp.array([[1, 0, 0]] * 2)
    _, accuracy = objectives.itm_loss(logits, matches, jnp.array([True, False]))
    np.testing.assert_allclose(accuracy, 2 / 3, rtol=1e-6)
