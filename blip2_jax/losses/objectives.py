"""Loss functions of both stages: ITC, ITM and language modelling, from logits.

All functions are pure and compute in fp32. Means run over the global batch; under
`jax.jit` with sharded inputs, plain `jnp` reductions give that. `num_shards` > 1
averages within each shard first, as the original does per rank.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Entropy of the 1/3 match prior: an ITM loss stuck here has learned nothing.
ITM_PRIOR_ENTROPY = math.log(3) - 2 / 3 * math.log(2)


def weighted_mean(
    values: Float[Array, "B ..."], weights: Float[Array, "B ..."], num_shards: int = 1
) -> Float[Array, ""]:
    """Compute the weighted mean within each shard, then the mean over shards.

    A shard whose weights are all zero contributes zero.

    Raises:
      ValueError: the batch size is not divisible by `num_shards`.
    """
    if values.shape[0] % num_shards:
        raise ValueError(
            f"a batch of {values.shape[0]} rows is not divisible into {num_shards} "
            "shards"
        )
    values, weights = (x.reshape(num_shards, -1) for x in (values, weights))
    totals = weights.sum(axis=1)
    sums = (values * weights).sum(axis=1)
    return jnp.mean(sums / jnp.where(totals > 0, totals, 1.0))


def cross_entropy(
    logits: Float[Array, "... V"],
    targets: Int[Array, "..."],
    label_smoothing: float = 0.0,
) -> Float[Array, "..."]:
    """Compute the negative log-likelihood of each target, unreduced, in fp32.

    With smoothing e the target distribution is (1 - e) one-hot + e / V (Szegedy et al.
    2016), as in `torch.nn.functional.cross_entropy`.
    """
    logits = logits.astype(jnp.float32)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = log_normalizer - target_logits
    if not label_smoothing:
        return loss
    uniform = log_normalizer - logits.mean(axis=-1)
    return (1 - label_smoothing) * loss + label_smoothing * uniform


def itc_loss(
    image_to_text: Float[Array, "B B"],
    text_to_image: Float[Array, "B B"],
    positives: Bool[Array, "B B"],
    label_smoothing: float = 0.1,
) -> Float[Array, ""]:
    """Compute the image-text contrastive loss: the mean of both directions.

    Args:
      image_to_text: similarity / temperature, one image per row.
      text_to_image: similarity / temperature, one text per row.
      positives: from `same_image`; the positives of a row share its target mass.
      label_smoothing: target mass spread over the whole row.
    """
    targets = positives / positives.sum(axis=1, keepdims=True)
    targets = (1 - label_smoothing) * targets + label_smoothing / targets.shape[1]

    def direction(logits: Float[Array, "B B"]) -> Float[Array, ""]:
        return -(targets * jax.nn.log_softmax(logits, axis=1)).sum(axis=1).mean()

    return (direction(image_to_text) + direction(text_to_image)) / 2


def itm_loss(
    logits: Float[Array, "B texts 2"],
    matches: Int[Array, "B texts"],
    valid: Bool[Array, " B"],
    num_shards: int = 1,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute the image-text matching loss over N pairs per row.

    Args:
      logits: logits of (no match, match).
      matches: 1 for a matching pair, else 0.
      valid: rows that have a negative; the other rows get weight 0.
      num_shards: see `weighted_mean`.

    Returns:
      The loss and the accuracy over the same pairs.
    """
    weights = jnp.broadcast_to(valid[:, None], matches.shape).astype(jnp.float32)
    correct = (logits.argmax(axis=-1) == matches).astype(jnp.float32)
    loss = weighted_mean(cross_entropy(logits, matches), weights, num_shards)
    return loss, weighted_mean(correct, weights, num_shards)


def lm_loss(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    label_smoothing: float = 0.0,
    num_shards: int = 1,
) -> Float[Array, ""]:
    """Compute the mean cross-entropy over the tokens of `mask`.

    Targets are aligned with logits: for next-token prediction pass `logits[:, :-1]` and
    `targets[:, 1:]`.
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
    """Compute the mean over texts of the sum of their token losses; see `lm_loss`.

    Rows without a target token get weight 0.
    """
    losses = cross_entropy(logits, targets, label_smoothing)
    text_losses = jnp.where(mask, losses, 0.0).sum(axis=1)
    return weighted_mean(text_losses, mask.any(axis=1).astype(jnp.float32), num_shards)
