"""Embeddings and match scores of a trained model: traceable functions of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.nn.similarity import max_query_similarity


def image_features(
    model: Blip2Base, params: PyTree, images: Shaped[Array, "B ..."]
) -> dict[str, Array]:
    """`image_embeds` [B,Q,D] and, in stage 1, their unit `image_embeds_proj` [B,Q,C].

    In stage 2 `image_embeds_proj` [B,Q,E] is what the language model reads.
    """
    bound = model.bind({"params": params})
    features = bound.encode_image(images)
    if isinstance(bound, Blip2Stage2):
        queries = bound.encode_queries(features)
        projected = bound.project(queries)
    else:
        image = bound.image_keys_values(features)
        queries, _ = bound.qformer.query_pass(bound.query_tokens, image)
        projected = bound.project_queries(queries)
    return {"image_embeds": queries, "image_embeds_proj": projected}


def attention_maps(
    model: Blip2Base, params: PyTree, images: Shaped[Array, "B ..."]
) -> dict[str, Array]:
    """`attention` [B,Q,P], fp32: where each query looks, blocks and heads averaged."""
    bound = model.bind({"params": params})
    maps = bound.attention_maps(bound.encode_image(images))
    return {"attention": jnp.stack(maps).mean(axis=(0, 2))}


def text_features(
    model: Blip2Stage1, params: PyTree, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> dict[str, Array]:
    """`text_embeds` [B,T,D] and their unit `text_embeds_proj` [B,T,C]; [CLS] first."""
    bound = model.bind({"params": params})
    hidden = bound.qformer.text_pass(ids, mask)
    return {"text_embeds": hidden, "text_embeds_proj": bound.project_text(hidden)}


def multimodal_features(
    model: Blip2Stage1,
    params: PyTree,
    images: Shaped[Array, "B ..."],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> dict[str, Array]:
    """`multimodal_embeds` [B,Q,D]: the queries' output with the text beside them."""
    bound = model.bind({"params": params})
    image = bound.image_keys_values(bound.encode_image(images))
    queries = bound.qformer.multimodal_pass(
        bound.query_tokens, ids, mask, image, queries_only=True
    )
    return {"multimodal_embeds": queries}


def match_scores(
    model: Blip2Stage1,
    params: PyTree,
    images: Shaped[Array, "B ..."],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> dict[str, Float[Array, " B"]]:
    """Row by row, `itc`: the largest cosine over queries; `itm`: P(match)."""
    bound = model.bind({"params": params})
    image = bound.image_keys_values(bound.encode_image(images))
    queries, _ = bound.qformer.query_pass(bound.query_tokens, image)
    hidden = bound.qformer.text_pass(ids, mask, first_only=True)
    # One image with one text at a time: [B, 1, 1].
    cosine = jax.vmap(max_query_similarity)(
        bound.project_queries(queries)[:, None], bound.project_text(hidden)
    )
    matched = bound.qformer.multimodal_pass(
        bound.query_tokens, ids, mask, image, queries_only=True
    )
    match = jax.nn.softmax(bound.itm_logits(matched), axis=-1)[:, 1]
    return {"itc": cosine[:, 0, 0], "itm": match}
