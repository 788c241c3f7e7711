"""A stage-1 model as retrieval sees it: compiled passes over chunks of fixed size."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree, Shaped
from numpy import ndarray as Array

from blip2_jax.evaluation.rerank_cache import FinishedRows
from blip2_jax.evaluation.retrieval import Scores, rerank
from blip2_jax.inference.inputs import pad_batch
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.qformer.qformer import ImageKeyValues
from blip2_jax.nn.similarity import max_query_similarity
from blip2_jax.parallel import hosts, sharding

# The original evaluates with texts a little longer than the 32 tokens of its training.
TEXT_LENGTH = 35
_TRAINED_LENGTH = 32


def text_length(trained_length: int | None) -> int:
    """Length to cut texts to: the original's, or that of a training with less."""
    if trained_length is None or trained_length >= _TRAINED_LENGTH:
        return TEXT_LENGTH
    return trained_length


class EncodedImages(NamedTuple):
    """Images: frozen features (before ln_vision) and unit vectors of queries."""

    features: Shaped[Array, "images P D"]
    queries: Float[Array, "images Q C"]


class Stage1Scorer:
    """Scores images against texts with one model and its parameters.

    Attributes:
      batch_size: rows of every compiled pass; the last chunk is padded.
    """

    def __init__(self, model: Blip2Stage1, params: PyTree, batch_size: int = 64):
        self.batch_size = batch_size
        self._model = model
        self._params = params

    def encode_images(self, images: Iterable[Shaped[Array, "B ..."]]) -> EncodedImages:
        """Encode images, or given features, a batch at a time.

        Args:
          images: batches of at most `batch_size` rows.
        """
        parts: list[EncodedImages] = []
        for batch in images:
            count = len(batch)
            outputs = hosts.to_host(
                _encode_images(self._model, self._params, self._padded(batch))
            )
            parts.append(EncodedImages(*(part[:count] for part in outputs)))
        return EncodedImages(*map(np.concatenate, zip(*parts, strict=True)))

    def encode_texts(
        self, ids: Int[Array, "texts T"], mask: Bool[Array, "texts T"]
    ) -> Float[Array, "texts C"]:
        """Unit vectors of texts."""
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
        """Logits of (no match, match) of one image with some texts.

        The image's cross-attention keys and values are computed once.
        """
        placed = sharding.place_rows_like(self._params, features[None])
        image = _image_keys_values(self._model, self._params, placed)
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
        """First stage: the ITC similarity of every image with every text.

        Args:
          images: those of the share.
          ids, mask: all texts.
          share: what this process encodes; the others' vectors are gathered.
        """
        share = share or hosts.Share()
        mine = list(share.indices(len(ids)))
        texts = hosts.all_gather_rows(self.encode_texts(ids[mine], mask[mine]), share)
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
        finished: FinishedRows | None = None,
    ) -> Scores:
        """Second stage: the k best of each row by the matching head.

        Args:
          images: those of the share.
          ids, mask: all texts.
          cosine, k, finished: as `retrieval.rerank` takes them.
          share: as in `cosine`.
        """
        share = share or hosts.Share()
        return rerank(
            cosine,
            lambda image, texts: self.match_logits(
                images.features[image // share.count], ids[texts], mask[texts]
            )[:, 1],
            k,
            share=share,
            finished=finished,
        )

    def _chunks(self, rows: Int[Array, " rows"]) -> Iterator[Int[Array, " B"]]:
        for start in range(0, len(rows), self.batch_size):
            yield rows[start : start + self.batch_size]

    def _padded(self, rows: Shaped[Array, "rows ..."]) -> Shaped[Any, "B ..."]:
        """Up to `batch_size` rows, the last one repeated, where the parameters are."""
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
    """One image's keys and values [1, ...] against B texts."""
    bound = model.bind({"params": params})
    queries = bound.qformer.multimodal_pass(
        bound.query_tokens, ids, mask, image, queries_only=True
    )
    return bound.itm_logits(queries)
