"""The compiled programs of a stage-2 model before decoding, and what they read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree, Shaped
from numpy import ndarray as Array

from blip2_jax.inference import programs
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.sizes import FeaturesConfig, LanguageModelConfig
from blip2_jax.nn.kv_cache import PrefixKV

# A CPU keeps a second, faster copy of language models up to this size.
MAX_UNSTACKED_BYTES = 2**30


# Prefill and decoding are compiled separately, so that other decoding settings do not
# recompile the prefill, which contains the image encoder.
@programs.compile_function(static=("model",))
def prefill_language_model(
    model: Blip2Stage2,
    params: PyTree,
    images: Shaped[jax.Array, "B ..."],
    prompt_ids: Int[jax.Array, "B T"],
    prompt_mask: Bool[jax.Array, "B T"],
    question: tuple[Int[jax.Array, "B ..."], Bool[jax.Array, "B ..."]] | tuple[()] = (),
    weights: PyTree = None,
) -> tuple[Float[jax.Array, "B V"], PrefixKV]:
    """Run a stage-2 model up to the logits of the first new token.

    Args:
      model: Flax module.
      params: its parameters.
      images: uint8 or normalised images, or features from `encode_image`. With one
        more axis, [B, images, ...], the queries of a row's images are concatenated.
      prompt_ids: for a decoder-only model [BOS] prompt, padded on the left; for an
        encoder-decoder prompt [EOS], padded on the right.
      prompt_mask: True = a real token.
      question: ids and mask of the questions that the Q-Former reads: [B, T] for one
        per row, or [B, images, T] for one per image.
      weights: from `unstack_weights`; None reads those in `params`.
    """
    bound = model.bind({"params": params})
    image_rank = 3 if isinstance(model.config.vision, FeaturesConfig) else 4
    batch, has_several = images.shape[0], images.ndim > image_rank
    count = images.shape[1] if has_several else 1
    if has_several:
        images = images.reshape(-1, *images.shape[2:])
    # [B, images, T] -> [B * images, T]; or repeat the question of each row.
    question_arrays = [
        array.reshape(-1, array.shape[-1])
        if array.ndim == 3
        else jnp.repeat(array, count, axis=0)
        for array in question
    ]
    queries = bound.encode_queries(bound.encode_image(images), *question_arrays)
    if has_several:
        queries = queries.reshape(batch, -1, queries.shape[-1])
    logits, prefix = bound.prefill(queries, prompt_ids, prompt_mask, weights)
    # The weights are an argument of the decoding program and need no copy in the cache.
    return logits, dataclasses.replace(prefix, weights=None)


@programs.compile_function(static=("model",))
def unstack_weights(model: Blip2Stage2, params: PyTree) -> PyTree:
    """Copy the language model's weights to the layout that a CPU reads fastest."""
    return model.bind({"params": params}).language_model.unstacked_weights()


def should_unstack_weights(params: PyTree) -> bool:
    """Return True on a CPU if the language model is small enough to be copied."""
    weights = jax.tree.leaves(params["language_model"])
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in weights)
    return jax.default_backend() == "cpu" and size <= MAX_UNSTACKED_BYTES


def repetition_history(
    language_model: LanguageModelConfig,
    prompt_ids: Int[Array, "B T"],
    prompt_mask: Bool[Array, "B T"],
    convention: str,
) -> Int[Array, "B T"]:
    """Return the tokens that the repetition penalty counts from the start; -1 for none.

    For an encoder-decoder this is the decoder's start token. For a decoder-only model
    it is the prompt with BOS under `transformers5`, and BOS alone under `original`:
    LAVIS passes embeddings only, and transformers 4.33 puts BOS in their place. In
    place of an end token that begins texts, as InstructBLIP's Vicuna has it, this is
    the <s> of the first Llama, which no model writes.
    """
    if not language_model.is_encoder_decoder and convention == "transformers5":
        return np.where(prompt_mask, prompt_ids, np.int32(-1))
    start_id = language_model.start_id
    if start_id is None or start_id == language_model.end_id:
        start_id = -1
    return np.full((prompt_ids.shape[0], 1), start_id, np.int32)
