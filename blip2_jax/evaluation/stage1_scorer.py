"""Compiled passes of a stage-1 model for retrieval, in chunks of fixed size."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree, Shaped
from numpy import ndarray as Array

from blip2_jax.evaluation.rerank import rerank
from blip2_jax.evaluation.rerank_cache import RerankCache
from blip2_jax.inference.inputs import pad_batch
from blip2_jax.metrics.retrieval import Scores
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.qformer.qformer import ImageKeyValues
from blip2_jax.nn.similarity import max_query_similarity
from blip2_jax.parallel import hosts, sharding


class EncodedImages(NamedTuple):
    """Frozen features of images (before ln_vision) and unit vectors of queries."""

    features: Shaped[Array, "images P D"]
    queries: Float[Array, "images Q C"]


class Stage1Scorer:
    """Score images against texts with one model and its parameters.

    Attributes:
      batch_size: rows of every compiled pass; the last chunk is padded.
    """

    def __init__(self, model: Blip2Stage1, params: PyTree, batch_size: int = 64):
        """Make a scorer; nothing is computed yet."""
        self.batch_size = batch_size
        self._model = model
        self._params = params

    def encode_images(self, images: Iterable[Shaped[Array, "B ..."]]) -> EncodedImages:
        """Encode images, or features of images, a batch at a time.

        Args:
          images: batches of at most `batch_size` rows.
        """
        parts: list[EncodedImages] = []
        for batch in images:
            count = len(batch)
            outputs = hosts.to_host(
                _encode_images(self._model, self._params, self._padded(batch))
            )
            parts.append(EncodedImages(*(output[:count] for output in outputs)))
        return EncodedImages(*map(np.concatenate, zip(*parts, strict=True)))

    def encode_texts(
        self, ids: Int[Array, "texts T"], mask: Bool[Array, "texts T"]
    ) -> Float[Array, "texts C"]:
        """Encode texts as unit vectors."""
        vectors = [
            hosts.to_host(
                _encode_texts(
                    self._model,
                    self._params,
                    self._padded(ids[rows]),
                    self._padded(mask[rows]),
                )
            )[: len(rows)]
            for rows in self._chunks(np.arange(len(ids)))
        ]
        return np.concatenate(vectors)

    def match_logits(
        self,
        features: Shaped[Array, "P D"],
        ids: Int[Array, "rows T"],
        mask: Bool[Array, "rows T"],
    ) -> Float[Array, "rows 2"]:
        """Compute the (no match, match) logits of one image with some texts.

        The image's cross-attention keys and values are computed once.
        """
        image_features = sharding.place_rows_like(self._params, features[None])
        image = _image_keys_values(self._model, self._params, image_features)
        logits = [
            hosts.to_host(
                _match(
                    self._model,
                    self._params,
                    image,
                    self._padded(ids[rows]),
                    self._padded(mask[rows]),
                )
            )[: len(rows)]
            for rows in self._chunks(np.arange(len(ids)))
        ]
        return np.concatenate(logits)

    def cosine(
        self,
        images: EncodedImages,
        ids: Int[Array, "texts T"],
        mask: Bool[Array, "texts T"],
        share: hosts.Share | None = None,
    ) -> Float[Array, "images texts"]:
        """Compute the ITC similarity of every image with every text (first stage).

        Args:
          images: the images of the share.
          ids: token ids of all texts.
          mask: True at tokens, False at padding.
          share: the images and texts that this process encodes; by default all.
        """
        share = share or hosts.Share()
        own = list(share.indices(len(ids)))
        texts = hosts.all_gather_rows(self.encode_texts(ids[own], mask[own]), share)
        queries = hosts.all_gather_rows(images.queries, share)
        return np.asarray(_max_query_similarity(queries, texts))

    def rerank(
        self,
        images: EncodedImages,
        ids: Int[Array, "texts T"],
        mask: Bool[Array, "texts T"],
        cosine: Float[Array, "images texts"],
        k: int,
        share: hosts.Share | None = None,
        cache: RerankCache | None = None,
    ) -> Scores:
        """Score the k best candidates by the matching head (second stage).

        Args:
          images: the images of the share.
          ids: token ids of all texts.
          mask: True at tokens, False at padding.
          cosine: from the first stage.
          k: candidates per image and per text.
          share: the images that this process scores; by default all.
          cache: finished rows of an interrupted re-ranking.
        """
        share = share or hosts.Share()
        return rerank(
            cosine,
            lambda image, texts: self.match_logits(
                images.features[image // share.count], ids[texts], mask[texts]
            )[:, 1],
            k,
            share=share,
            cache=cache,
        )

    def _chunks(self, rows: Int[Array, " rows"]) -> Iterator[Int[Array, " B"]]:
        for start in range(0, len(rows), self.batch_size):
            yield rows[start : start + self.batch_size]

    def _padded(self, rows: Shaped[Array, "rows ..."]) -> Shaped[Any, "B ..."]:
        """Pad to `batch_size` with the last row, and place like the parameters."""
        return sharding.place_rows_like(self._params, pad_batch(rows, self.batch_size))


_max_query_similarity = jax.jit(max_query_similarity)


@functools.partial(jax.jit, static_argnums=0)
def _encode_images(model: Blip2Stage1, params: PyTree, images: Any) -> Any:
    bound = model.bind({"params": params})
    features = bound.encode_image(images)
    image = bound.image_keys_values(features)
    hidden, _ = bound.qformer.query_pass(bound.query_tokens, image)
    return features, bound.project_queries(hidden)


@functools.partial(jax.jit, static_argnums=0)
def _encode_texts(model: Blip2Stage1, params: PyTree, ids: Any, mask: Any) -> Any:
    bound = model.bind({"params": params})
    hidden = bound.qformer.text_pass(ids, mask, first_only=True)
    return bound.project_text(hidden[:, 0])


@functools.partial(jax.jit, static_argnums=0)
def _image_keys_values(
    model: Blip2Stage1, params: PyTree, features: Any
) -> ImageKeyValues:
    return model.bind({"params": params}).image_keys_values(features)


@functools.partial(jax.jit, static_argnums=0)
def _match(
    model: Blip2Stage1, params: PyTree, image: ImageKeyValues, ids: Any, mask: Any
) -> Any:
    """Match one image, keys and values [1, ...], with B texts."""
    bound = model.bind({"params": params})
    queries = bound.qformer.multimodal_pass(
        bound.query_tokens, ids, mask, image, queries_only=True
    )
    return bound.itm_logits(queries)
