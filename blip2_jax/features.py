"""Embeddings and match scores of a trained model: traceable functions of arrays."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2


def image_features(
    model: Blip2Base, params: PyTree, images: Shaped[Array, "B ..."]
) -> dict[str, Array]:
    """`image_embeds` [B,Q,D] and, in stage 1, their unit `image_embeds_proj` [B,Q,C].

    In stage 2 `image_embeds_proj` [B,Q,E] is what the language model reads.
    """
    call = functools.partial(model.apply, {"params": params})
    features = call(images, method="encode_image")
    if isinstance(model, Blip2Stage2):
        queries = call(features, method="encode_queries")
        return {
            "image_embeds": queries,
            "image_embeds_proj": call(queries, method="project"),
        }
    image = call(features, method="image_keys_values")
    queries, _ = call(image, method="query_pass")
    return {
        "image_embeds": queries,
        "image_embeds_proj": call(queries, method="project_queries"),
    }


def text_features(
    model: Blip2Stage1, params: PyTree, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> dict[str, Array]:
    """`text_embeds` [B,T,D] and their unit `text_embeds_proj` [B,T,C]; [CLS] first."""
    call = functools.partial(model.apply, {"params": params})
    hidden = call(ids, mask, method="text_pass")
    return {
        "text_embeds": hidden,
        "text_embeds_proj": call(hidden, method="project_text"),
    }


def multimodal_features(
    model: Blip2Stage1,
    params: PyTree,
    images: Shaped[Array, "B ..."],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> dict[str, Array]:
    """`multimodal_embeds` [B,Q,D]: the queries' output with the text beside them."""
    call = functools.partial(model.apply, {"params": params})
    features = call(images, method="encode_image")
    image = call(features, method="image_keys_values")
    hidden = call(ids, mask, image, method="multimodal_pass")
    return {"multimodal_embeds": hidden[:, : model.config.qformer.num_queries]}


def match_scores(
    model: Blip2Stage1,
    params: PyTree,
    images: Shaped[Array, "B ..."],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> dict[str, Float[Array, " B"]]:
    """Row by row, `itc`: the largest cosine over queries; `itm`: P(match)."""
    call = functools.partial(model.apply, {"params": params})
    image = call(call(images, method="encode_image"), method="image_keys_values")
    queries, _ = call(image, method="query_pass")
    words = call(ids, mask, method="text_pass")[:, 0]
    cosines = jnp.einsum(
        "bqc,bc->bq",
        call(queries, method="project_queries"),
        call(words, method="project_text"),
        precision=jax.lax.Precision.HIGHEST,
    )
    hidden = call(ids, mask, image, method="multimodal_pass")
    hidden = hidden[:, : model.config.qformer.num_queries]
    match = jax.nn.softmax(call(hidden, method="itm_logits"), axis=-1)[:, 1]
    return {"itc": cosines.max(axis=1), "itm": match}
