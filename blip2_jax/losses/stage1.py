"""The stage-1 loss: ITC, ITM and ITG on one batch (paper section 3.2)."""

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
from blip2_jax.parallel.row_gather import EXCHANGES, batch_axes, gather_global_rows


@dataclasses.dataclass(frozen=True)
class Stage1Options:
    """Options of the loss. Unless noted, the defaults are those of the original.

    Attributes:
      itc_weight, itm_weight, itg_weight: weights of the losses. An ITM or ITG weight of
        0 skips that pass.
      label_smoothing: of ITC and ITG.
      full_itc_gradient: propagate the ITC gradient into both sides. The original treats
        the gathered side as a constant.
      num_shards: average ITM and ITG within each of this many shards of the batch
        first. The original does so per rank; 1 is the mean over the global batch.
      share_kv: project the cross-attention keys and values of an image once. The
        original projects them in each of four passes; the numbers are the same.
      image_tokens: number of random image tokens that training uses, as in FLIP (Li et
        al. 2023): cheaper steps and less overfitting on small data sets. 0 uses all.
      negative_hardness: factor of the similarities in the softmax that negatives are
        sampled from. A factor below 1 mixes in easier negatives, which helps if the
        hardest ones are near-duplicates.
      exchange: how devices exchange the images of negatives (`parallel.row_gather`).
        Training chooses by its devices if the configuration does not.
      itm_every, itg_every: compute ITM or ITG on every n-th row of the batch, while ITC
        uses all rows.
    """

    itc_weight: float = 1.0
    itm_weight: float = 1.0
    itg_weight: float = 1.0
    label_smoothing: float = 0.1
    full_itc_gradient: bool = False
    num_shards: int = 1
    share_kv: bool = True
    image_tokens: int = 0
    negative_hardness: float = 1.0
    exchange: str = "ring"
    itm_every: int = 1
    itg_every: int = 1

    def __post_init__(self) -> None:
        """Check the exchange.

        Raises:
          ValueError: it is unknown.
        """
        if self.exchange not in EXCHANGES:
            known = ", ".join(EXCHANGES)
            raise ValueError(f"exchange is {self.exchange!r}; expected one of {known}")


class EncodedPairs(NamedTuple):
    """Intermediate results of the ITC pass that ITM and ITG use again.

    Attributes:
      features: image features before `ln_vision`.
      image_kv: cross-attention keys and values of the images.
      query_cache: self-attention keys and values of the queries; empty if the pass
        computed `caption_hidden`.
      caption_hidden: output of the Q-Former for the ITG captions, if they were part of
        the pass.
    """

    features: Float[Array, "B P D"]
    image_kv: ImageKeyValues
    query_cache: QueryCache = ()
    caption_hidden: Float[Array, "B T D"] | None = None


class ITCResult(NamedTuple):
    """ITC of the global batch.

    Attributes:
      loss: the ITC loss.
      image_to_text: similarity / temperature, without gradient.
      text_to_image: its counterpart with one text per row.
      positives: from `same_image`.
    """

    loss: Float[Array, ""]
    image_to_text: Float[Array, "B B"]
    text_to_image: Float[Array, "B B"]
    positives: Bool[Array, "B B"]


class TextTokens(NamedTuple):
    """Token ids of texts, and a mask that is False for padding."""

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
    """Compute the weighted sum of the three stage-1 losses.

    Args:
      model: the stage-1 model.
      params: its parameters.
      batch: `image` or `features`; `text_ids` and `text_mask` [B, T] that start with
        [CLS]; optionally `image_id` [B] (without it, all images differ).
      key: key of the step, for dropout and hard negatives. None disables dropout and
        samples negatives from a fixed key (evaluation).
      options: options of the loss.
      negatives: replayed negatives; None samples them.
      decoder_start_id: id of [DEC]; None uses the last id of the vocabulary.

    Returns:
      The loss and its metrics: fp32 scalars `loss_itc`, `loss_itm`, `loss_itg`,
      `itm_accuracy`, `temperature` and `loss`, and the sampled `negatives`.
    """
    dropout_key, negatives_key = step_keys(key)
    encode_key, itm_key, itg_key = split_key(dropout_key, 3)
    bound = model.bind({"params": params})
    caption_ids = decoder_input_ids(model, batch, options, decoder_start_id)
    joint = bool(options.itg_weight) and options.itg_every == 1
    queries, texts, encoded = encode_pairs(
        bound, batch, encode_key, options, caption_ids=caption_ids if joint else None
    )
    itc = compute_itc(queries, texts, params["temperature"], batch, options)
    metrics = {"loss_itc": itc.loss, "temperature": params["temperature"]}
    loss = options.itc_weight * itc.loss
    if options.itm_weight:
        if negatives is None:
            negatives = sample_negatives(negatives_key, itc, options)
        every = options.itm_every
        all_texts = TextTokens(batch["text_ids"], batch["text_mask"])
        itm, accuracy = compute_itm(
            bound,
            jax.tree.map(lambda x: x[::every], all_texts),
            jax.tree.map(lambda x: x[negatives.text[::every]], all_texts),
            *_itm_image_kv(bound, encoded, negatives, options),
            hard_negatives.has_negative(itc.positives)[::every],
            itm_key,
            options,
        )
        metrics |= {"loss_itm": itm, "itm_accuracy": accuracy, "negatives": negatives}
        loss += options.itm_weight * itm
    if options.itg_weight:
        itg = compute_itg(bound, batch, caption_ids, encoded, itg_key, options)
        metrics["loss_itg"] = itg
        loss += options.itg_weight * itg
    return loss, metrics | {"loss": loss}


def step_keys(
    key: PRNGKeyArray | None,
) -> tuple[PRNGKeyArray | None, PRNGKeyArray]:
    """Return the keys of a step for dropout (None disables it) and for negatives."""
    dropout_key = None if key is None else jax.random.fold_in(key, 0)
    return dropout_key, jax.random.fold_in(jax.random.key(0) if key is None else key, 1)


def encode_pairs(
    bound: Blip2Stage1,
    batch: Batch,
    key: PRNGKeyArray | None,
    options: Stage1Options,
    features: Float[Array, "B P D"] | None = None,
    caption_ids: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B Q C"], Float[Array, "B C"], EncodedPairs]:
    """Encode images and texts into unit vectors of the contrastive space.

    Args:
      bound: the model, bound to its parameters.
      batch: see `stage1_loss`.
      key: key for dropout and for sampling image tokens; None disables both.
      options: options of the loss.
      features: image features from an earlier call with the same key.
      caption_ids: decoder input of ITG, to be read in the same pass.

    Returns:
      Vectors of the queries, vectors of the texts, and intermediate results.
    """
    query_key, text_key, token_key = split_key(key, 3)
    if features is None:
        images = batch["features"] if "features" in batch else batch["image"]
        features = bound.encode_image(images)
        if options.image_tokens and token_key is not None:
            features = some_tokens(features, options.image_tokens, token_key)
    image_kv = bound.image_keys_values(features)
    ids, mask = batch["text_ids"], batch["text_mask"]
    if caption_ids is None:
        hidden, query_cache = bound.qformer.query_pass(
            bound.query_tokens, image_kv, key=query_key
        )
        text = bound.qformer.text_pass(ids, mask, first_only=True, key=text_key)[:, 0]
        encoded = EncodedPairs(features, image_kv, query_cache)
    else:
        hidden, text, caption_hidden = bound.qformer.joint_pass(
            bound.query_tokens, ids, caption_ids, mask, image_kv, key=query_key
        )
        encoded = EncodedPairs(features, image_kv, caption_hidden=caption_hidden)
    return bound.project_queries(hidden), bound.project_text(text), encoded


def compute_itc(
    queries: Float[Array, "B Q C"],
    texts: Float[Array, "B C"],
    temperature: Float[Array, ""],
    batch: Batch,
    options: Stage1Options,
) -> ITCResult:
    """Compute image-text contrast over the global batch."""
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
    return ITCResult(loss, *jax.lax.stop_gradient(scores), positives)


def sample_negatives(
    key: PRNGKeyArray, itc: ITCResult, options: Stage1Options
) -> Negatives:
    """Sample the hard negatives of the global batch."""
    return hard_negatives.sample_hard_negatives(
        key,
        itc.image_to_text * options.negative_hardness,
        itc.text_to_image * options.negative_hardness,
        itc.positives,
    )


def compute_itm(
    bound: Blip2Stage1,
    texts: TextTokens,
    negative_texts: TextTokens,
    image_kv: ImageKeyValues,
    negative_image_kv: ImageKeyValues,
    valid: Bool[Array, " B"],
    key: PRNGKeyArray | None,
    options: Stage1Options,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute image-text matching on three pairs per row.

    The pairs are (image, text), (image, negative text) and (negative image, text). They
    are interleaved by row, so that rows stay on their devices.

    Args:
      bound: the model, bound to its parameters.
      texts: texts of the rows.
      negative_texts: negative text of each row.
      image_kv: keys and values of the rows' images, shared by two pairs each. Without
        `options.share_kv`, those of all pairs [3B, ...].
      negative_image_kv: keys and values of the negative images. Without
        `options.share_kv`, ().
      valid: rows that have a negative.
      key: key for dropout, or None.
      options: options of the loss.

    Returns:
      The ITM loss and accuracy.
    """
    pair_texts = jax.tree.map(
        lambda own, negative: interleave(own, negative, own), texts, negative_texts
    )
    queries = bound.qformer.multimodal_pass(
        bound.query_tokens,
        pair_texts.ids,
        pair_texts.mask,
        image_kv,
        negative_image_kv,
        queries_only=True,
        key=key,
    )
    logits = bound.itm_logits(queries).reshape(-1, 3, 2)
    matches = jnp.broadcast_to(jnp.array([1, 0, 0]), logits.shape[:2])
    return objectives.itm_loss(logits, matches, valid, options.num_shards)


def _itm_image_kv(
    bound: Blip2Stage1,
    encoded: EncodedPairs,
    negatives: Negatives,
    options: Stage1Options,
) -> tuple[ImageKeyValues, ImageKeyValues]:
    """Return the image keys and values that `compute_itm` takes.

    On one device those of negative images are rows of the batch's own. On a mesh the
    frozen features are exchanged, normalised and projected where they are used, which
    needs no communication in the backward pass.
    """
    every, features = options.itm_every, encoded.features
    if not options.share_kv or batch_axes():
        sampled = gather_global_rows(features, negatives.image, options.exchange)
        sampled = sampled[::every]
    if not options.share_kv:
        features = features[::every]
        return bound.image_keys_values(interleave(features, features, sampled)), ()
    own_kv = jax.tree.map(lambda x: x[::every], encoded.image_kv)
    if batch_axes():
        return own_kv, bound.image_keys_values(sampled)
    indices = negatives.image[::every]
    return own_kv, jax.tree.map(lambda x: x[indices], encoded.image_kv)


def decoder_input_ids(
    model: Blip2Stage1,
    batch: Batch,
    options: Stage1Options,
    start_id: int | None = None,
) -> Int[Array, "B T"]:
    """Return the ITG input: texts of every n-th row with [DEC] in place of [CLS]."""
    if start_id is None:
        start_id = model.config.qformer.vocab_size - 1
    return batch["text_ids"][:: options.itg_every].at[:, 0].set(start_id)


def compute_itg(
    bound: Blip2Stage1,
    batch: Batch,
    caption_ids: Int[Array, "B T"],
    encoded: EncodedPairs,
    key: PRNGKeyArray | None,
    options: Stage1Options,
) -> Float[Array, ""]:
    """Compute image-grounded text generation on every n-th row.

    Args:
      bound: the model, bound to its parameters.
      batch: see `stage1_loss`.
      caption_ids: from `decoder_input_ids`.
      encoded: results of the ITC pass.
      key: key for dropout, or None.
      options: options of the loss.
    """
    every = options.itg_every
    mask = batch["text_mask"][::every]
    hidden = encoded.caption_hidden
    if hidden is None:
        cache = jax.tree.map(lambda x: x[::every], encoded.query_cache)
        hidden = bound.qformer.generate_pass(caption_ids, mask, cache, key=key)
    logits = bound.qformer.lm_logits(hidden[:, :-1])  # the last token has no target
    return objectives.lm_loss(
        logits,
        caption_ids[:, 1:],
        mask[:, 1:],
        options.label_smoothing,
        options.num_shards,
    )


def interleave(*parts: Array) -> Array:
    """Interleave n arrays [B, ...] by row: [nB, ...]."""
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
