"""The losses of both stages: pure functions of arrays of the global batch.

All means run over the global batch (under jit with sharded inputs plain `jnp` gives
that). `num_shards` > 1 averages within each shard first, as the original does per
rank. Everything here is fp32, products at HIGHEST precision.
"""

from __future__ import annotations

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from blip2_jax.nn.precision import einsum_fp32

MOST_SCORES = 2**24  # of all queries at once: 64 MB
# What an ITM loss reaches that knows no more than that one pair in three matches.
ITM_PRIOR_ENTROPY = math.log(3) - 2 / 3 * math.log(2)


@flax.struct.dataclass
class Negatives:
    """Hard negatives: which image stands against text b, which text against image b.

    Indices into the global batch. A sampled object may be given back to a step to
    replay it.
    """

    image: Int[Array | np.ndarray, " B"]
    text: Int[Array | np.ndarray, " B"]


def weighted_mean(
    values: Float[Array, "B ..."], weights: Float[Array, "B ..."], num_shards: int = 1
) -> Float[Array, ""]:
    """Mean of `values` by `weights`, within each of `num_shards` shards, then of all.

    A shard whose weights are all zero contributes zero.

    Raises:
      ValueError: the batch does not divide into the shards.
    """
    if values.shape[0] % num_shards:
        raise ValueError(f"{values.shape[0]} rows do not make {num_shards} shards")
    values, weights = (x.reshape(num_shards, -1) for x in (values, weights))
    totals = weights.sum(axis=1)
    sums = (values * weights).sum(axis=1)
    return jnp.mean(sums / jnp.where(totals > 0, totals, 1.0))


def similarities(
    queries: Float[Array, "B Q C"], texts: Float[Array, "N C"]
) -> Float[Array, "B N"]:
    """Cosine of each image and text: the best of the image's queries (section 3.2).

    Where the scores of all queries would be large they are never held at once
    (`best_query`): 361 MB for 1,680 images, texts and 32 queries, and as much again
    backward.
    """
    if queries.shape[0] * queries.shape[1] * texts.shape[0] > MOST_SCORES:
        return best_query(queries, texts)
    return einsum_fp32("iqc,jc->iqj", queries, texts).max(axis=1)


@jax.custom_vjp
def best_query(
    queries: Float[Array, "B Q C"], texts: Float[Array, "N C"]
) -> Float[Array, "B N"]:
    """`similarities`, query by query: memory of two of its results."""
    return _running_best(queries, texts)[0]


def _running_best(queries: Array, texts: Array) -> tuple[Array, Array]:
    """The best score of each pair, and which query it is of (the first of equals)."""

    def compare(
        best: tuple[Array, Array], query: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        score, place, number = *best, query[0]
        other = einsum_fp32("ic,jc->ij", query[1], texts)
        better = other > score
        return (jnp.where(better, other, score), jnp.where(better, number, place)), None

    shape = (queries.shape[0], texts.shape[0])
    start = jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros(shape, jnp.uint16)
    by_query = queries.swapaxes(0, 1)
    numbers = jnp.arange(len(by_query), dtype=jnp.uint16)
    return jax.lax.scan(compare, start, (numbers, by_query))[0]


def _best_query_forward(queries: Array, texts: Array) -> tuple[Array, Any]:
    best, place = _running_best(queries, texts)
    return best, (queries, texts, place)


def _best_query_backward(saved: Any, gradient: Array) -> tuple[Array, Array]:
    queries, texts, place = saved

    def of_query(by_texts: Array, query: tuple[Array, Array]) -> tuple[Array, Array]:
        own = jnp.where(place == query[0], gradient, 0.0)
        by_texts += einsum_fp32("ij,ic->jc", own, query[1])
        return by_texts, einsum_fp32("ij,jc->ic", own, texts)

    by_query = queries.swapaxes(0, 1)
    numbers = jnp.arange(len(by_query), dtype=jnp.uint16)
    zeros = jnp.zeros_like(texts)
    by_texts, by_queries = jax.lax.scan(of_query, zeros, (numbers, by_query))
    return by_queries.swapaxes(0, 1), by_texts


best_query.defvjp(_best_query_forward, _best_query_backward)


def cross_entropy(
    logits: Float[Array, "... V"],
    targets: Int[Array, "..."],
    label_smoothing: float = 0.0,
) -> Float[Array, "..."]:
    """Negative log-likelihood of each target, unreduced; fp32.

    With smoothing e the target distribution is (1-e) one-hot + e/V (Szegedy et al.
    2016), as in `torch.nn.functional.cross_entropy`.
    """
    logits = logits.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = log_normalizer - chosen
    if not label_smoothing:
        return loss
    uniform = log_normalizer - logits.mean(axis=-1)
    return (1 - label_smoothing) * loss + label_smoothing * uniform


def same_image(image_id: Int[Array, " B"]) -> Bool[Array, "B B"]:
    """Which pairs of rows show one image; the diagonal always does."""
    return image_id[:, None] == image_id[None, :]


def itc_loss(
    image_to_text: Float[Array, "B B"],
    text_to_image: Float[Array, "B B"],
    positives: Bool[Array, "B B"],
    label_smoothing: float = 0.1,
) -> Float[Array, ""]:
    """Image-text contrast: mean of the two directions' cross-entropies.

    Args:
      image_to_text: similarity over temperature, one image a row.
      text_to_image: the same, one text a row.
      positives: from `same_image`; a row's positives share its target mass.
      label_smoothing: mass spread over the whole row.
    """
    targets = positives / positives.sum(axis=1, keepdims=True)
    targets = (1 - label_smoothing) * targets + label_smoothing / targets.shape[1]

    def direction(logits: Float[Array, "B B"]) -> Float[Array, ""]:
        return -(targets * jax.nn.log_softmax(logits, axis=1)).sum(axis=1).mean()

    return (direction(image_to_text) + direction(text_to_image)) / 2


def negative_weights(
    similarity: Float[Array, "B B"], positives: Bool[Array, "B B"]
) -> Float[Array, "B B"]:
    """Probability of drawing each column as the row's negative; 0 for positives."""
    return jax.nn.softmax(similarity, axis=1, where=~positives)


def sample_hard_negatives(
    key: PRNGKeyArray,
    image_to_text: Float[Array, "B B"],
    text_to_image: Float[Array, "B B"],
    positives: Bool[Array, "B B"],
) -> Negatives:
    """Draws one negative per row and direction from the softmax of similarities.

    One global draw per direction, so that it does not depend on the mesh. A row
    without a valid negative gets an arbitrary one: see `has_negative`.

    Args:
      key: of this step.
      image_to_text: similarity over temperature, one image a row.
      text_to_image: the same, one text a row.
      positives: pairs that must not be drawn.
    """
    image_key, text_key = jax.random.split(key)

    def draw(key: PRNGKeyArray, similarity: Float[Array, "B B"]) -> Int[Array, " B"]:
        logits = jnp.where(positives, -jnp.inf, jax.lax.stop_gradient(similarity))
        return jax.random.categorical(key, logits, axis=1).astype(jnp.int32)

    return Negatives(
        image=draw(image_key, text_to_image), text=draw(text_key, image_to_text)
    )


def has_negative(positives: Bool[Array, "B B"]) -> Bool[Array, " B"]:
    """Rows that some other image of the batch can stand against."""
    return ~positives.all(axis=1)


def itm_loss(
    logits: Float[Array, "B N 2"],
    matches: Int[Array, "B N"],
    valid: Bool[Array, " B"],
    num_shards: int = 1,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Image-text matching: two-way cross-entropy over N pairs a row.

    Args:
      logits: of (no match, match).
      matches: 1 = the pair belongs together.
      valid: rows with a negative; the others have no weight.
      num_shards: see `weighted_mean`.

    Returns:
      The loss, and the accuracy over the same pairs.
    """
    weights = jnp.broadcast_to(valid[:, None], matches.shape).astype(jnp.float32)
    right = (logits.argmax(axis=-1) == matches).astype(jnp.float32)
    loss = weighted_mean(cross_entropy(logits, matches), weights, num_shards)
    return loss, weighted_mean(right, weights, num_shards)


def lm_loss(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    label_smoothing: float = 0.0,
    num_shards: int = 1,
) -> Float[Array, ""]:
    """Mean cross-entropy over the tokens of `mask`; targets aligned with logits.

    For next-token prediction hand over `logits[:, :-1]` and `targets[:, 1:]`.
    """
    losses = cross_entropy(logits, targets, label_smoothing)
    return weighted_mean(losses, mask.astype(jnp.float32), num_shards)


def text_loss(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    label_smoothing: float = 0.0,
    num_shards: int = 1,
) -> Float[Array, ""]:
    """Mean over texts of the sum of their tokens' cross-entropies; see `lm_loss`.

    Rows without a target are no texts.
    """
    losses = cross_entropy(logits, targets, label_smoothing)
    texts = jnp.where(mask, losses, 0.0).sum(axis=1)
    return weighted_mean(texts, mask.any(axis=1).astype(jnp.float32), num_shards)
