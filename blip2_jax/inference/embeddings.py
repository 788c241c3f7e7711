"""Embeddings and match scores of a trained model: traceable functions of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.nn.bind import bind


def image_features(
    model: Blip2Base, params: PyTree, images: Shaped[Array, "B ..."]
) -> dict[str, Array]:
    """`image_embeds` [B,Q,D] and, in stage 1, their unit `image_embeds_proj` [B,Q,C].

    In stage 2 `image_embeds_proj` [B,Q,E] is what the language model reads.
    """
    apply = bind(model, params)
    features = apply("encode_image", images)
    if isinstance(model, Blip2Stage2):
        queries = apply("encode_queries", features)
        return {
            "image_embeds": queries,
            "image_embeds_proj": apply("project", queries),
        }
    image = apply("image_keys_values", features)
    queries, _ = apply("query_pass", image)
    return {
        "image_embeds": queries,
        "image_embeds_proj": apply("project_queries", queries),
    }


def attention_maps(
    model: Blip2Base, params: PyTree, images: Shaped[Array, "B ..."]
) -> dict[str, Array]:
    """`attention` [B,Q,P], fp32: where each query looks, blocks and heads averaged."""
    apply = bind(model, params)
    maps = apply("attention_maps", apply("encode_image", images))
    return {"attention": jnp.stack(maps).mean(axis=(0, 2))}


def text_features(
    model: Blip2Stage1, params: PyTree, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> dict[str, Array]:
    """`text_embeds` [B,T,D] and their unit `text_embeds_proj` [B,T,C]; [CLS] first."""
    apply = bind(model, params)
    hidden = apply("text_pass", ids, mask)
    return {
        "text_embeds": hidden,
        "text_embeds_proj": apply("project_text", hidden),
    }


def multimodal_features(
    model: Blip2Stage1,
    params: PyTree,
    images: Shaped[Array, "B ..."],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> dict[str, Array]:
    """`multimodal_embeds` [B,Q,D]: the queries' output with the text beside them."""
    apply = bind(model, params)
    features = apply("encode_image", images)
    image = apply("image_keys_values", features)
    queries = apply("multimodal_pass", ids, mask, image, queries_only=True)
    return {"multimodal_embeds": queries}


def match_scores(
    model: Blip2Stage1,
    params: PyTree,
    images: Shaped[Array, "B ..."],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> dict[str, Float[Array, " B"]]:
    """Row by row, `itc`: the largest cosine over queries; `itm`: P(match)."""
    apply = bind(model, params)
    image = apply("image_keys_values", apply("encode_image", images))
    queries, _ = apply("query_pass", image)
    words = apply("text_pass", ids, mask, first_only=True)[:, 0]
    cosines = jnp.einsum(
        "bqc,bc->bq",
        apply("project_queries", queries),
        apply("project_text", words),
        precision=jax.lax.Precision.HIGHEST,
    )
    matched = apply("multimodal_pass", ids, mask, image, queries_only=True)
    match = jax.nn.softmax(apply("itm_logits", matched), axis=-1)[:, 1]
    return {"itc": cosines.max(axis=1), "itm": match}
