"""The loss of stage 1: ITC, ITM and ITG on one batch (paper section 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from blip2_jax.losses import hard_negatives, objectives
from blip2_jax.losses.hard_negatives import Negatives
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.qformer.qformer import ImageKeyValues, QueryCache
from blip2_jax.nn.dropout import some_tokens, split_key
from blip2_jax.nn.similarity import max_query_similarity
from blip2_jax.parallel.row_gather import batch_axes, gather_global_rows


@dataclasses.dataclass(frozen=True)
class Stage1Options:
    """Every choice of the loss; the defaults are the original's unless said."""

    itc_weight: float = 1.0
    itm_weight: float = 1.0  # 0 leaves the pass out, and so does the next
    itg_weight: float = 1.0
    label_smoothing: float = 0.1  # of ITC and ITG
    # The gathered side of ITC is a constant in the original. True: both sides learn.
    full_itc_gradient: bool = False
    # Means over the global batch (ours) are 1. The original averages ITG over the
    # tokens of each rank first: the number of ranks (`per_shard_mean`).
    num_shards: int = 1
    # The original projects an image's keys and values again for each of four passes;
    # the numbers are the same.
    share_kv: bool = True
    # Training sees so many of an image's tokens, chosen at random (as FLIP, Li et al.
    # 2023, does): cheaper steps, and less to learn by heart in a small set. 0: all.
    image_tokens: int = 0
    # Negatives are drawn from the softmax of this times the similarities: 1 is the
    # original; less mixes easier ones in, where near-duplicates would be all there is.
    negative_hardness: float = 1.0
    # ITM and ITG learn from every n-th row of the batch, ITC from all: small batches
    # for the costly objectives, large ones for the contrast. The original: 1.
    itm_every: int = 1
    itg_every: int = 1


class Encoded(NamedTuple):
    """What the ITC pass leaves for the other objectives."""

    features: Float[Array, "B P D"]  # before ln_vision
    image: ImageKeyValues
    query_cache: QueryCache = ()  # of a pass that read no captions
    captions: Float[Array, "B T D"] | None = None  # the output of one that did


class Contrast(NamedTuple):
    """ITC of the global batch: its loss, and what hard negatives are drawn from."""

    loss: Float[Array, ""]
    image_to_text: Float[Array, "B B"]  # similarity over temperature, constants
    text_to_image: Float[Array, "B B"]
    positives: Bool[Array, "B B"]


class Texts(NamedTuple):
    """Tokens of some captions."""

    ids: Int[Array, "B T"]
    mask: Bool[Array, "B T"]


Batch = Mapping[str, Array]


def stage1_loss(
    model: Blip2Stage1,
    params: PyTree,
    batch: Batch,
    key: PRNGKeyArray | None,
    options: Stage1Options = Stage1Options(),
    negatives: Negatives | None = None,
    *,
    decoder_start_id: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Weighted sum of the three losses.

    Args:
      model: the stage-1 model.
      params: its parameters.
      batch: `image` or `features`, `text_ids` and `text_mask` [B, T] beginning with
        [CLS], optionally `image_id` [B] (absent: all images differ).
      key: of this step: hard negatives and dropout. None: no dropout, and negatives
        drawn from a fixed key (evaluation).
      options: see there.
      negatives: replayed instead of drawn.
      decoder_start_id: [DEC]; None = the last word of the vocabulary.

    Returns:
      The loss, and fp32 scalars `loss_itc`, `loss_itm`, `loss_itg`, `itm_accuracy`,
      `temperature`, `loss`; `negatives` holds the sampled indices.
    """
    dropout_key, negatives_key = step_keys(key)
    keys = split_key(dropout_key, 3)
    captions = caption_ids(model, batch, options, decoder_start_id)
    together = bool(options.itg_weight) and options.itg_every == 1
    queries, texts, encoded = encode(
        model, params, batch, keys[0], options, captions=captions if together else None
    )
    itc = contrast(queries, texts, params["temperature"], batch, options)
    metrics = {"loss_itc": itc.loss, "temperature": params["temperature"]}
    loss = options.itc_weight * itc.loss
    if options.itm_weight:
        if negatives is None:
            negatives = draw_negatives(negatives_key, itc, options)
        every = options.itm_every
        own = Texts(batch["text_ids"], batch["text_mask"])
        other = jax.tree.map(lambda x: x[negatives.text[::every]], own)
        itm, accuracy = matching(
            model,
            params,
            jax.tree.map(lambda x: x[::every], own),
            other,
            *_paired_images(model, params, encoded, negatives, options),
            hard_negatives.has_negative(itc.positives)[::every],
            keys[1],
            options,
        )
        metrics |= {"loss_itm": itm, "itm_accuracy": accuracy, "negatives": negatives}
        loss += options.itm_weight * itm
    if options.itg_weight:
        itg = captioning(model, params, batch, captions, encoded, keys[2], options)
        metrics["loss_itg"] = itg
        loss += options.itg_weight * itg
    return loss, metrics | {"loss": loss}


def step_keys(
    key: PRNGKeyArray | None,
) -> tuple[PRNGKeyArray | None, PRNGKeyArray]:
    """Keys of a step's dropout (None: none) and of its negatives."""
    dropout_key = None if key is None else jax.random.fold_in(key, 0)
    return dropout_key, jax.random.fold_in(jax.random.key(0) if key is None else key, 1)


def encode(
    model: Blip2Stage1,
    params: PyTree,
    batch: Batch,
    key: PRNGKeyArray | None,
    options: Stage1Options,
    features: Float[Array, "B P D"] | None = None,
    captions: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B Q C"], Float[Array, "B C"], Encoded]:
    """Unit vectors of images and texts, and what the other objectives use again.

    Args:
      model, params, batch, options: see `stage1_loss`.
      key: dropout, and which of an image's tokens are seen; None: none, all.
      features: of the images, where an earlier call with this key has left them.
      captions: to be read in the same pass, for ITG.
    """
    bound = model.bind({"params": params})
    query_key, text_key, token_key = split_key(key, 3)
    if features is None:
        source = batch["features"] if "features" in batch else batch["image"]
        features = bound.encode_image(source)
        if options.image_tokens and token_key is not None:
            features = some_tokens(features, options.image_tokens, token_key)
    image = bound.image_keys_values(features)
    ids, mask = batch["text_ids"], batch["text_mask"]
    if captions is None:
        hidden, query_cache = bound.qformer.query_pass(
            bound.query_tokens, image, key=query_key
        )
        text = bound.qformer.text_pass(ids, mask, first_only=True, key=text_key)[:, 0]
        encoded = Encoded(features, image, query_cache)
    else:
        hidden, text, captions_read = bound.qformer.joint_pass(
            bound.query_tokens, ids, captions, mask, image, key=query_key
        )
        encoded = Encoded(features, image, captions=captions_read)
    return bound.project_queries(hidden), bound.project_text(text), encoded


def contrast(
    queries: Float[Array, "B Q C"],
    texts: Float[Array, "B C"],
    temperature: Float[Array, ""],
    batch: Batch,
    options: Stage1Options,
) -> Contrast:
    """Image-text contrast over the global batch."""
    constant = (lambda x: x) if options.full_itc_gradient else jax.lax.stop_gradient
    image_to_text = max_query_similarity(queries, constant(texts)) / temperature
    text_to_image = max_query_similarity(constant(queries), texts).T / temperature
    image_id = batch.get("image_id")
    if image_id is None:
        image_id = jnp.arange(texts.shape[0])
    positives = hard_negatives.same_image(image_id)
    loss = objectives.itc_loss(
        image_to_text, text_to_image, positives, options.label_smoothing
    )
    scores = (image_to_text, text_to_image)
    return Contrast(loss, *jax.lax.stop_gradient(scores), positives)


def draw_negatives(
    key: PRNGKeyArray, itc: Contrast, options: Stage1Options
) -> Negatives:
    """Hard negatives of the global batch."""
    return hard_negatives.sample_hard_negatives(
        key,
        itc.image_to_text * options.negative_hardness,
        itc.text_to_image * options.negative_hardness,
        itc.positives,
    )


def matching(
    model: Blip2Stage1,
    params: PyTree,
    own: Texts,
    other: Texts,
    image: ImageKeyValues,
    other_image: ImageKeyValues,
    valid: Bool[Array, " B"],
    key: PRNGKeyArray | None,
    options: Stage1Options,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Matching of (image, text), (image, negative text), (negative image, text).

    The three pairs of a row stand next to each other, so that a batch divided over
    devices stays where it is.

    Args:
      model, params, key, options: see `stage1_loss`.
      own: the texts of the rows.
      other: their negatives.
      image: keys and values of the rows' images, read by two pairs each; of all pairs
        [3B, ...] where they are not to be shared.
      other_image: those of their negatives; () where they are not to be shared.
      valid: rows that have a negative.

    Returns:
      The ITM loss, and its accuracy.
    """
    bound = model.bind({"params": params})
    texts = jax.tree.map(lambda own, other: triples(own, other, own), own, other)
    queries = bound.qformer.multimodal_pass(
        bound.query_tokens,
        texts.ids,
        texts.mask,
        image,
        other_image,
        queries_only=True,
        key=key,
    )
    logits = bound.itm_logits(queries).reshape(-1, 3, 2)
    matches = jnp.broadcast_to(jnp.array([1, 0, 0]), logits.shape[:2])
    return objectives.itm_loss(logits, matches, valid, options.num_shards)


def _paired_images(
    model: Blip2Stage1,
    params: PyTree,
    encoded: Encoded,
    negatives: Negatives,
    options: Stage1Options,
) -> tuple[ImageKeyValues, ImageKeyValues]:
    """Keys and values of the images of the pairs, as `matching` takes them.

    On one device those of the negatives are taken from the batch's own. Between
    devices the frozen features travel, and are normed and projected where they are
    used: no communication in the backward pass.
    """
    bound = model.bind({"params": params})
    every, features = options.itm_every, encoded.features
    if not options.share_kv or batch_axes():
        sampled = gather_global_rows(features, negatives.image)[::every]
    if not options.share_kv:
        features = features[::every]
        return bound.image_keys_values(triples(features, features, sampled)), ()
    own = jax.tree.map(lambda x: x[::every], encoded.image)
    if batch_axes():
        return own, bound.image_keys_values(sampled)
    other = jax.tree.map(lambda x: x[negatives.image[::every]], encoded.image)
    return own, other


def caption_ids(
    model: Blip2Stage1,
    batch: Batch,
    options: Stage1Options,
    start_id: int | None = None,
) -> Int[Array, "B T"]:
    """What ITG reads: texts of every n-th row, [DEC] in place of their [CLS]."""
    if start_id is None:
        start_id = model.config.qformer.vocab_size - 1
    return batch["text_ids"][:: options.itg_every].at[:, 0].set(start_id)


def captioning(
    model: Blip2Stage1,
    params: PyTree,
    batch: Batch,
    ids: Int[Array, "B T"],
    encoded: Encoded,
    key: PRNGKeyArray | None,
    options: Stage1Options,
) -> Float[Array, ""]:
    """ITG: the captions `ids` of every n-th row, from what their queries have read."""
    bound = model.bind({"params": params})
    every = options.itg_every
    mask = batch["text_mask"][::every]
    hidden = encoded.captions
    if hidden is None:
        cache = jax.tree.map(lambda x: x[::every], encoded.query_cache)
        hidden = bound.qformer.generate_pass(ids, mask, cache, key=key)
    logits = bound.qformer.lm_logits(hidden[:, :-1])  # the last place predicts nothing
    return objectives.lm_loss(
        logits,
        ids[:, 1:],
        mask[:, 1:],
        options.label_smoothing,
        options.num_shards,
    )


def triples(*parts: Array) -> Array:
    """Three arrays [B, ...], interleaved: [3B, ...]."""
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
