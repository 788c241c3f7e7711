"""Stage 1 a chunk at a time, with the contrastive batch kept whole.

Gao et al. 2021 ("GradCache"): ITC needs only unit vectors of the other rows. A first
pass over the chunks leaves these, and the frozen features of the images; from them
come the ITC loss of the global batch, its gradient by each vector, and the negatives.
A second pass encodes each chunk again, with the same dropout, and goes backward from
that gradient and from the chunk's share of ITM and ITG. Negatives of a chunk belong to
any chunk: as between devices, their frozen features are normed and projected anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from blip2_jax.losses import chunks, hard_negatives, stage1
from blip2_jax.losses.hard_negatives import Negatives
from blip2_jax.losses.stage1 import Stage1Options, Texts
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.nn.dropout import split_key
from blip2_jax.nn.trees import flatten, matches, merge
from blip2_jax.parallel.row_gather import gather_global_rows


class _Chunk(NamedTuple):
    """What the second pass needs of a chunk's rows; everything but these is whole."""

    batch: Mapping[str, Array]
    keys: PRNGKeyArray | None
    features: Float[Array, "B P D"]
    by_queries: Float[Array, "B Q C"]  # gradient of ITC
    by_texts: Float[Array, "B C"]
    other: Texts
    other_features: Float[Array, "B P D"]
    valid: Bool[Array, " B"]


class _Totals(NamedTuple):
    """Over the global batch: what ITM and ITG are means of."""

    rows: Float[Array, ""]
    tokens: Float[Array, ""]


def check_encoder(
    count: int, init_params: Callable[[jax.Array], PyTree], frozen: Sequence[str]
) -> None:
    """Refuse to train the image encoder: its features are computed once.

    Raises:
      ValueError: the rules of frozen paths leave one of its parameters to be trained.
    """
    for path in flatten(jax.eval_shape(init_params, jax.random.key(0))):
        if path.startswith("visual_encoder/") and not matches(frozen, path):
            raise ValueError(
                f"config.optimizer.accumulate is {count}, which in stage 1 needs a "
                f"frozen image encoder; config.frozen leaves {path} to be trained"
            )


def stage1_in_chunks(
    model: Blip2Stage1, options: Stage1Options, count: int
) -> chunks.Gradients:
    """`stage1_loss` and its gradient; the image encoder is frozen.

    Args:
      model: the stage-1 model.
      options: all rows take part in ITM and ITG, means are of the global batch.
      count: of chunks.
    """

    def gradients(
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Mapping[str, Any],
        key: jax.Array | None,
        replay: Negatives | None = None,
    ) -> tuple[jax.Array, chunks.Metrics, dict[str, Any]]:
        params = merge(trainable, frozen)
        dropout_key, negatives_key = stage1.step_keys(key)
        rows = chunks.divided(dict(batch), count)
        keys = chunks.keys(dropout_key, count)
        features, queries, texts = _first_pass(model, params, rows, keys, options)

        def itc_of(queries: Array, texts: Array, temperature: Array) -> Any:
            found = stage1.contrast(queries, texts, temperature, batch, options)
            return options.itc_weight * found.loss, found

        inputs = (*chunks.joined((queries, texts)), params["temperature"])
        (loss, itc), (by_queries, by_texts, by_temperature) = jax.value_and_grad(
            itc_of, argnums=(0, 1, 2), has_aux=True
        )(*inputs)
        negatives = replay
        if negatives is None:
            negatives = stage1.draw_negatives(negatives_key, itc, options)

        own = Texts(batch["text_ids"], batch["text_mask"])
        valid = hard_negatives.has_negative(itc.positives)
        parts = (
            by_queries,
            by_texts,
            jax.tree.map(lambda x: x[negatives.text], own),
            gather_global_rows(chunks.joined(features), negatives.image),
            valid,
        )
        items = _Chunk(rows, keys, features, *chunks.divided(parts, count))
        totals = _Totals(
            *(
                jnp.maximum(x.sum(dtype=jnp.float32), 1)
                for x in (valid, own.mask[:, 1:])
            )
        )

        def of_chunk(item: _Chunk) -> Any:
            return jax.value_and_grad(_second_pass, argnums=1, has_aux=True)(
                model, trainable, frozen, item, totals, options
            )

        (_, metrics), gradient = chunks.summed(of_chunk, items)
        if "temperature" in gradient:
            gradient["temperature"] += by_temperature
        metrics |= {"loss_itc": itc.loss, "temperature": params["temperature"]}
        if options.itm_weight:
            metrics["negatives"] = negatives
            loss += options.itm_weight * metrics["loss_itm"]
        if options.itg_weight:
            loss += options.itg_weight * metrics["loss_itg"]
        return loss, metrics | {"loss": loss}, gradient

    return gradients


def _first_pass(
    model: Blip2Stage1,
    params: PyTree,
    rows: Mapping[str, Array],
    keys: PRNGKeyArray | None,
    options: Stage1Options,
) -> Any:
    """Features and unit vectors of all chunks, [chunks, b, ...]."""

    def look(_: None, item: Any) -> tuple[None, Any]:
        batch, key = item
        first_key = split_key(key, 3)[0]
        queries, texts, encoded = stage1.encode(
            model, params, batch, first_key, options
        )
        return None, (encoded.features, queries, texts)

    return jax.lax.scan(look, None, (rows, keys))[1]


def _second_pass(
    model: Blip2Stage1,
    trainable: Mapping[str, Any],
    frozen: Mapping[str, Any],
    item: _Chunk,
    totals: _Totals,
    options: Stage1Options,
) -> tuple[jax.Array, chunks.Metrics]:
    """What has the gradient of the chunk's part in the loss; its ITM and ITG."""
    params = merge(trainable, frozen)
    keys = split_key(item.keys, 3)
    queries, texts, encoded = stage1.encode(
        model, params, item.batch, keys[0], options, item.features
    )
    value = (queries * item.by_queries).sum() + (texts * item.by_texts).sum()
    own = Texts(item.batch["text_ids"], item.batch["text_mask"])
    metrics: chunks.Metrics = {}
    if options.itm_weight:
        bound = model.bind({"params": params})
        other = bound.image_keys_values(item.other_features)
        itm, accuracy = stage1.matching(
            model,
            params,
            own,
            item.other,
            encoded.image,
            other,
            item.valid,
            keys[1],
            options,
        )
        share = item.valid.sum() / totals.rows
        metrics |= {"loss_itm": itm * share, "itm_accuracy": accuracy * share}
        value += options.itm_weight * metrics["loss_itm"]
    if options.itg_weight:
        itg = stage1.captioning(
            model,
            params,
            item.batch,
            stage1.caption_ids(model, item.batch, options),
            encoded,
            keys[2],
            options,
        )
        metrics["loss_itg"] = itg * own.mask[:, 1:].sum() / totals.tokens
        value += options.itg_weight * metrics["loss_itg"]
    return value, metrics
