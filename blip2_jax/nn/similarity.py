"""Cosine similarity in the contrastive space: unit vectors and the max over queries."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blip2_jax.nn.precision import einsum_fp32
from blip2_jax.parallel.row_gather import current_batch_shards

# Largest part of a [B, Q, texts] score array that a device computes at once: 64 MB.
MAX_SCORES = 2**24


def unit_vectors(x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Scale vectors to length one, in fp32, so that dot products are cosines."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def max_query_similarity(
    queries: Float[Array, "B Q C"], texts: Float[Array, "texts C"]
) -> Float[Array, "B texts"]:
    """Compute the similarity of every image with every text.

    The similarity is the largest cosine between any query of the image and the text
    (paper section 3.2). Above `MAX_SCORES` scores of a device the queries are scanned:
    the [B, Q, texts] array takes 361 MB for 1,680 images and texts, and as much in the
    backward pass. On a mesh the scan would add up gradients between devices once per
    query.

    Args:
      queries: unit vectors of the queries of each image.
      texts: unit vectors of the texts.
    """
    scores = queries.shape[0] * queries.shape[1] * texts.shape[0]
    if scores // current_batch_shards() > MAX_SCORES:
        return scan_query_similarity(queries, texts)
    return einsum_fp32("iqc,jc->iqj", queries, texts).max(axis=1)


@jax.custom_vjp
def scan_query_similarity(
    queries: Float[Array, "B Q C"], texts: Float[Array, "texts C"]
) -> Float[Array, "B texts"]:
    """Compute `max_query_similarity` with a scan over queries.

    Forward and backward pass hold two [B, texts] arrays instead of Q.
    """
    return _running_max(queries, texts)[0]


def _running_max(queries: Array, texts: Array) -> tuple[Array, Array]:
    """Return the maximum over queries and its index (the first one of a tie)."""

    def compare(
        best: tuple[Array, Array], query: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        best_score, best_index = best
        index, vectors = query
        score = einsum_fp32("ic,jc->ij", vectors, texts)
        better = score > best_score
        return (
            jnp.where(better, score, best_score),
            jnp.where(better, index, best_index),
        ), None

    shape = (queries.shape[0], texts.shape[0])
    initial = jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.uint16)
    return jax.lax.scan(compare, initial, _enumerate_queries(queries))[0]


def _enumerate_queries(queries: Array) -> tuple[Array, Array]:
    """Return query indices [Q] and query vectors [Q, B, C], to be scanned together."""
    by_query = queries.swapaxes(0, 1)
    return jnp.arange(len(by_query), dtype=jnp.uint16), by_query


def _forward(queries: Array, texts: Array) -> tuple[Array, Any]:
    best, best_index = _running_max(queries, texts)
    return best, (queries, texts, best_index)


def _backward(residuals: Any, gradient: Array) -> tuple[Array, Array]:
    queries, texts, best_index = residuals

    def add_query(
        texts_gradient: Array, query: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        index, vectors = query
        selected = jnp.where(best_index == index, gradient, 0.0)
        texts_gradient += einsum_fp32("ij,ic->jc", selected, vectors)
        return texts_gradient, einsum_fp32("ij,jc->ic", selected, texts)

    texts_gradient, by_query = jax.lax.scan(
        add_query, jnp.zeros_like(texts), _enumerate_queries(queries)
    )
    return by_query.swapaxes(0, 1), texts_gradient


scan_query_similarity.defvjp(_forward, _backward)
