"""Maximum over queries of the cosine: values, gradients and memory."""

import jax
import jax.numpy as jnp
import numpy as np

from blip2_jax.nn import similarity
from blip2_jax.nn.similarity import max_query_similarity, scan_query_similarity


def test_similarity_is_the_best_query():
    queries = jnp.array([[[1.0, 0], [0, 1]], [[-1, 0], [0, -1]]])
    texts = jnp.array([[1.0, 0], [0.6, 0.8]])
    expected = [[1, 0.8], [0, -0.6]]
    np.testing.assert_allclose(max_query_similarity(queries, texts), expected)


def test_query_by_query_is_the_same_with_its_gradients():
    keys = jax.random.split(jax.random.key(0), 3)
    queries = jax.random.normal(keys[0], (6, 5, 8))
    texts, weights = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys[1:], ((7, 8), (6, 7)), strict=True)
    )

    def value_and_gradients(function):
        return jax.value_and_grad(
            lambda q, t: (function(q, t) * weights).sum(), argnums=(0, 1)
        )(queries, texts)

    close = lambda ours, plain: np.testing.assert_allclose(ours, plain, 2e-6, 1e-6)
    jax.tree.map(
        close,
        value_and_gradients(scan_query_similarity),
        value_and_gradients(max_query_similarity),
    )


def test_scores_of_all_queries_are_not_held(monkeypatch):
    shape = jax.ShapeDtypeStruct

    def temporaries(rows):
        gradient = jax.grad(lambda q, t: max_query_similarity(q, t).sum(), (0, 1))
        args = shape((rows, 32, 16), "float32"), shape((rows, 16), "float32")
        compiled = jax.jit(gradient).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    rows = 1024  # 2 * MAX_SCORES
    assert temporaries(rows) < 4 * 32 * rows * rows / 4
    monkeypatch.setattr(similarity, "MAX_SCORES", 2**30)
    assert temporaries(rows) > 4 * 32 * rows * rows / 4
