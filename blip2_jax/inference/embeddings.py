"""Embeddings, match scores and attention maps: compiled functions of arrays."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from blip2_jax.inference import programs
from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.qformer.qformer import ImageKeyValues
from blip2_jax.models.sizes import FeaturesConfig, ViTConfig
from blip2_jax.nn.similarity import max_query_similarity

_compile = programs.compile_function(static=("model",))


@_compile
def encode_image(
    model: Blip2Base, params: PyTree, images: Shaped[Array, "B ..."]
) -> dict[str, Float[Array, "B P D"]]:
    """Compute `features`, which all functions accept in place of images."""
    return {"features": model.bind({"params": params}).encode_image(images)}


@_compile
def image_features(
    model: Blip2Base, params: PyTree, images: Shaped[Array, "B ..."]
) -> dict[str, Array]:
    """Compute `image_embeds` [B,Q,D] and their projections `image_embeds_proj`.

    Stage 1 projects to unit vectors [B,Q,C], stage 2 to the language model's input
    embeddings [B,Q,E].
    """
    bound = model.bind({"params": params})
    features = bound.encode_image(images)
    if isinstance(bound, Blip2Stage2):
        queries = bound.encode_queries(features)
        projected = bound.project(queries)
    else:
        assert isinstance(bound, Blip2Stage1)
        image = bound.image_keys_values(features)
        queries, _ = bound.qformer.query_pass(bound.query_tokens, image)
        projected = bound.project_queries(queries)
    return {"image_embeds": queries, "image_embeds_proj": projected}


@_compile
def attention_maps(
    model: Blip2Base, params: PyTree, images: Shaped[Array, "B ..."]
) -> dict[str, Array]:
    """Compute `attention` [B,Q,P]: fp32 cross-attention, mean over blocks and heads."""
    bound = model.bind({"params": params})
    maps = bound.attention_maps(bound.encode_image(images))
    return {"attention": jnp.stack(maps).mean(axis=(0, 2))}


def patch_grids(
    maps: Float[np.ndarray, "B Q P"], vision: ViTConfig | FeaturesConfig
) -> Float[np.ndarray, "B Q grid grid"]:
    """Reshape the attention to the patches to squares, without the tokens before them.

    Raises:
      ValueError: features do not end with a square of patches.
    """
    tokens = vision.num_tokens
    if isinstance(vision, ViTConfig):
        before = [tokens - vision.num_patches]
    else:  # nothing, a class token, or also four registers
        counts = [count for count in (0, 1, 5) if count < tokens]
        before = [n for n in counts if math.isqrt(tokens - n) ** 2 == tokens - n]
    if not before:
        raise ValueError(f"{tokens} image tokens do not form a square grid of patches")
    side = math.isqrt(tokens - before[0])
    return maps[..., before[0] :].reshape(*maps.shape[:-1], side, side)


@_compile
def text_features(
    model: Blip2Stage1, params: PyTree, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> dict[str, Array]:
    """Compute `text_embeds` [B,T,D] and unit vectors `text_embeds_proj` [B,T,C]."""
    bound = model.bind({"params": params})
    hidden = bound.qformer.text_pass(ids, mask)
    return {"text_embeds": hidden, "text_embeds_proj": bound.project_text(hidden)}


@_compile
def multimodal_features(
    model: Blip2Stage1,
    params: PyTree,
    images: Shaped[Array, "B ..."],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> dict[str, Array]:
    """Compute `multimodal_embeds` [B,Q,D]: query outputs that attend to the text."""
    bound = model.bind({"params": params})
    image = bound.image_keys_values(bound.encode_image(images))
    queries = bound.qformer.multimodal_pass(
        bound.query_tokens, ids, mask, image, queries_only=True
    )
    return {"multimodal_embeds": queries}


@_compile
def text_vectors(
    model: Blip2Stage1, params: PyTree, ids: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> dict[str, Float[Array, "B C"]]:
    """Compute `vectors`: the unit vector of each text in the contrastive space."""
    bound = model.bind({"params": params})
    text = bound.qformer.text_pass(ids, mask, first_only=True)
    return {"vectors": bound.project_text(text)[:, 0]}


@_compile
def matching_scores(
    model: Blip2Stage1,
    params: PyTree,
    images: Shaped[Array, "B ..."],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> dict[str, Float[Array, " B"]]:
    """Score pairs by the matching head alone.

    Returns:
      `itm`, P(match), and `logit`, the logit of "match".
    """
    bound = model.bind({"params": params})
    image = bound.image_keys_values(bound.encode_image(images))
    logits = _match_logits(bound, image, ids, mask)
    return {"itm": _match_probability(logits), "logit": logits[:, 1]}


@_compile
def match_scores(
    model: Blip2Stage1,
    params: PyTree,
    images: Shaped[Array, "B ..."],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> dict[str, Float[Array, " B"]]:
    """Score pairs: `itc`, the largest cosine over queries, and `itm`, P(match)."""
    bound = model.bind({"params": params})
    image = bound.image_keys_values(bound.encode_image(images))
    queries, _ = bound.qformer.query_pass(bound.query_tokens, image)
    text = bound.qformer.text_pass(ids, mask, first_only=True)
    # One image with one text at a time: [B, 1, 1].
    similarity = jax.vmap(max_query_similarity)(
        bound.project_queries(queries)[:, None], bound.project_text(text)
    )
    itm = _match_probability(_match_logits(bound, image, ids, mask))
    return {"itc": similarity[:, 0, 0], "itm": itm}


def _match_logits(
    bound: Blip2Stage1,
    image: ImageKeyValues,
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B 2"]:
    matched = bound.qformer.multimodal_pass(
        bound.query_tokens, ids, mask, image, queries_only=True
    )
    return bound.itm_logits(matched)


def _match_probability(logits: Float[Array, "B 2"]) -> Float[Array, " B"]:
    return jax.nn.softmax(logits, axis=-1)[:, 1]
