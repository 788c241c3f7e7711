"""The stage-1 loss in chunks, with the contrastive batch kept whole.

The method is GradCache (Gao et al. 2021). ITC needs only the unit vectors of the other
rows:

1. A first pass over the chunks computes these vectors and the frozen image features.
2. From them follow the ITC loss of the global batch, its gradient with respect to each
   vector, and the hard negatives.
3. A second pass encodes each chunk again, with the same dropout, and back-propagates
   that gradient together with the chunk's share of ITM and ITG.

A negative may belong to any chunk. As between devices, its frozen features are
normalised and projected again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from blip2_jax.losses import chunks, hard_negatives, stage1
from blip2_jax.losses.hard_negatives import Negatives
from blip2_jax.losses.stage1 import Stage1Options, TextTokens
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.nn.dropout import split_key
from blip2_jax.nn.trees import merge
from blip2_jax.parallel.row_gather import gather_global_rows


class _Chunk(NamedTuple):
    """Inputs of the second pass for the rows of one chunk.

    `queries_gradient` and `texts_gradient` are gradients of the ITC loss with respect
    to the unit vectors.
    """

    batch: Mapping[str, Array]
    dropout_key: PRNGKeyArray | None
    features: Float[Array, "B P D"]
    queries_gradient: Float[Array, "B Q C"]
    texts_gradient: Float[Array, "B C"]
    negative_texts: TextTokens
    negative_features: Float[Array, "B P D"]
    valid: Bool[Array, " B"]


class _Totals(NamedTuple):
    """Numbers of ITM rows and ITG tokens in the global batch: the means' divisors."""

    rows: Float[Array, ""]
    tokens: Float[Array, ""]


def check_encoder(count: int, trained: Iterable[str]) -> None:
    """Check that the image encoder is frozen, because its features are computed once.

    Raises:
      ValueError: a path of the trained parameters is in the image encoder.
    """
    for path in trained:
        if path.startswith("visual_encoder/"):
            raise ValueError(
                f"config.optimizer.accumulate is {count}, which in stage 1 needs a "
                f"frozen image encoder; this run trains {path}"
            )


def stage1_in_chunks(
    model: Blip2Stage1, options: Stage1Options, count: int
) -> chunks.Gradients:
    """Return a function that computes `stage1_loss` and its gradient in chunks.

    Args:
      model: the stage-1 model; its image encoder must be frozen.
      options: options of the loss. `itm_every`, `itg_every` and `num_shards` must be 1.
      count: number of chunks.
    """

    def gradients(
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Mapping[str, Any],
        key: jax.Array | None,
        negatives: Negatives | None = None,
    ) -> tuple[jax.Array, chunks.Metrics, dict[str, Any]]:
        params = merge(trainable, frozen)
        dropout_key, negatives_key = stage1.step_keys(key)
        rows = chunks.split_rows(dict(batch), count)
        keys = chunks.chunk_keys(dropout_key, count)
        features, queries, texts = _first_pass(model, params, rows, keys, options)

        def itc_of(queries: Array, texts: Array, temperature: Array) -> Any:
            itc = stage1.compute_itc(queries, texts, temperature, batch, options)
            return options.itc_weight * itc.loss, itc

        vectors = chunks.join_rows((queries, texts))
        (loss, itc), (*vector_gradients, temperature_gradient) = jax.value_and_grad(
            itc_of, argnums=(0, 1, 2), has_aux=True
        )(*vectors, params["temperature"])
        if negatives is None:
            negatives = stage1.sample_negatives(negatives_key, itc, options)

        all_texts = TextTokens(batch["text_ids"], batch["text_mask"])
        valid = hard_negatives.has_negative(itc.positives)
        negative_indices = negatives.text
        row_inputs = (
            *vector_gradients,
            jax.tree.map(lambda x: x[negative_indices], all_texts),
            gather_global_rows(
                chunks.join_rows(features), negatives.image, options.exchange
            ),
            valid,
        )
        items = _Chunk(rows, keys, features, *chunks.split_rows(row_inputs, count))
        totals = _Totals(_count(valid), _count(all_texts.mask[:, 1:]))

        def chunk_gradients(item: _Chunk) -> Any:
            return jax.value_and_grad(_second_pass, argnums=1, has_aux=True)(
                model, trainable, frozen, item, totals, options
            )

        (_, metrics), gradient = chunks.sum_over_chunks(chunk_gradients, items)
        if "temperature" in gradient:
            gradient["temperature"] += temperature_gradient
        metrics |= {"loss_itc": itc.loss, "temperature": params["temperature"]}
        if options.itm_weight:
            metrics["negatives"] = negatives
            loss += options.itm_weight * metrics["loss_itm"]
        if options.itg_weight:
            loss += options.itg_weight * metrics["loss_itg"]
        return loss, metrics | {"loss": loss}, gradient

    return gradients


def _count(mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """Count the True elements; at least 1, because it is a divisor."""
    return jnp.maximum(mask.sum(dtype=jnp.float32), 1)


def _first_pass(
    model: Blip2Stage1,
    params: PyTree,
    rows: Mapping[str, Array],
    keys: PRNGKeyArray | None,
    options: Stage1Options,
) -> tuple[Array, Array, Array]:
    """Return features and unit vectors of queries and texts, [count, B, ...]."""

    def encode(_: None, item: Any) -> tuple[None, Any]:
        batch, dropout_key = item
        encode_key = split_key(dropout_key, 3)[0]
        bound = model.bind({"params": params})
        queries, texts, encoded = stage1.encode_pairs(bound, batch, encode_key, options)
        return None, (encoded.features, queries, texts)

    return jax.lax.scan(encode, None, (rows, keys))[1]


def _second_pass(
    model: Blip2Stage1,
    trainable: Mapping[str, Any],
    frozen: Mapping[str, Any],
    item: _Chunk,
    totals: _Totals,
    options: Stage1Options,
) -> tuple[jax.Array, chunks.Metrics]:
    """Return a scalar with the gradient of the chunk's part of the loss, and metrics.

    The scalar is not the loss itself: its ITC part is the dot product of the unit
    vectors with their gradients.
    """
    bound = model.bind({"params": merge(trainable, frozen)})
    encode_key, itm_key, itg_key = split_key(item.dropout_key, 3)
    queries, texts, encoded = stage1.encode_pairs(
        bound, item.batch, encode_key, options, item.features
    )
    value = (queries * item.queries_gradient).sum() + (
        texts * item.texts_gradient
    ).sum()
    own_texts = TextTokens(item.batch["text_ids"], item.batch["text_mask"])
    metrics: chunks.Metrics = {}
    if options.itm_weight:
        itm, accuracy = stage1.compute_itm(
            bound,
            own_texts,
            item.negative_texts,
            encoded.image_kv,
            bound.image_keys_values(item.negative_features),
            item.valid,
            itm_key,
            options,
        )
        share = item.valid.sum() / totals.rows
        metrics |= {"loss_itm": itm * share, "itm_accuracy": accuracy * share}
        value += options.itm_weight * metrics["loss_itm"]
    if options.itg_weight:
        caption_ids = stage1.decoder_input_ids(model, item.batch, options)
        itg = stage1.compute_itg(
            bound, item.batch, caption_ids, encoded, itg_key, options
        )
        metrics["loss_itg"] = itg * own_texts.mask[:, 1:].sum() / totals.tokens
        value += options.itg_weight * metrics["loss_itg"]
    return value, metrics
