"""From images to new tokens: traceable functions, a pair per kind of model.

`read_*` runs the model up to the first new token's logits, `write_*` decodes from
there. Apart from each other they compile apart: other decoding settings then leave
the larger program as it is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from blip2_jax.generation.decode import decode
from blip2_jax.generation.decoder import Decoded, Decoder
from blip2_jax.generation.decoding_config import DecodingConfig
from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.presets import FeaturesConfig, LanguageModelConfig, T5Config
from blip2_jax.nn.kv_cache import GeneratedKV, PrefixKV, init_generated

COPIED_BYTES = 2**30  # of a language model of which a CPU keeps a second form
Read = tuple[Float[Array, "B V"], PrefixKV]


def encode_image(
    model: Blip2Base, params: PyTree, images: Shaped[Array, "B ..."]
) -> Float[Array, "B P D"]:
    """Features of images, which the `read_*` functions take in their place."""
    return model.bind({"params": params}).encode_image(images)


def read_stage1(
    model: Blip2Stage1,
    params: PyTree,
    images: Shaped[Array, "B ..."],
    start_ids: Int[Array, "B T"],
) -> Read:
    """Images through the Q-Former, whose own decoder reads the start of a text.

    Args:
      model: a stage-1 model.
      params: its parameters.
      images: uint8 or normalised images, or features (`encode_image`).
      start_ids: [DEC], and the words that the texts are to begin with.
    """
    bound = model.bind({"params": params})
    image = bound.image_keys_values(bound.encode_image(images))
    _, query_cache = bound.qformer.query_pass(bound.query_tokens, image)
    return bound.qformer.prefill(start_ids, query_cache)


def write_stage1(
    model: Blip2Stage1,
    params: PyTree,
    read: Read,
    config: DecodingConfig,
    *,
    eos_id: int,
    pad_id: int,
    history: Int[Array, "B H"] | None = None,
    keys: Key[Array, " B"] | None = None,
) -> Decoded:
    """Captions by the Q-Former's own decoder.

    Args:
      model: a stage-1 model.
      params: its parameters.
      read: from `read_stage1`.
      config: static settings.
      eos_id: [SEP].
      pad_id: [PAD].
      history: what the repetition penalty counts from the start.
      keys: one random key a row, for sampling.
    """
    logits, prefix = read

    def step(*args: Any) -> tuple[Float[Array, "B W V"], GeneratedKV]:
        return model.bind({"params": params}).qformer.decode_step(*args)

    decoder = Decoder(init_generated, step, eos_id, pad_id)
    return decode(decoder, logits, prefix, config, history=history, keys=keys)


def read_stage2(
    model: Blip2Stage2,
    params: PyTree,
    images: Shaped[Array, "B ..."],
    prompt_ids: Int[Array, "B T"],
    prompt_mask: Bool[Array, "B T"],
    question: tuple[Int[Array, "B ..."], Bool[Array, "B ..."]] | tuple[()] = (),
    weights: PyTree = None,
) -> Read:
    """The language model reads the image's queries and a prompt.

    Args:
      model: a stage-2 model.
      params: its parameters.
      images: uint8 or normalised images, or features (`encode_image`); with one more
        axis, [B, N, ...], the N images of a row stand one after the other.
      prompt_ids: decoder-only: BOS and prompt, padded on the left;
        encoder-decoder: prompt and end token.
      prompt_mask: True = a real token.
      question: Q-Former ids and mask, where the model reads a question there: one a
        row, or [B, N, T] one an image.
      weights: from `unstacked_weights`; None: those of `params`.
    """
    bound = model.bind({"params": params})
    batch, together = images.shape[0], images.ndim > _image_rank(model)
    count = images.shape[1] if together else 1
    if together:
        images = images.reshape(-1, *images.shape[2:])
    read = [
        part.reshape(-1, part.shape[-1])
        if part.ndim == 3
        else jnp.repeat(part, count, axis=0)
        for part in question
    ]
    queries = bound.encode_queries(bound.encode_image(images), *read)
    if together:
        queries = queries.reshape(batch, -1, queries.shape[-1])
    logits, prefix = bound.prefill(queries, prompt_ids, prompt_mask, weights)
    return logits, dataclasses.replace(prefix, weights=None)


def _image_rank(model: Blip2Stage2) -> int:
    """Axes of a batch of images, or of features."""
    return 3 if isinstance(model.config.vision, FeaturesConfig) else 4


def write_stage2(
    model: Blip2Stage2,
    params: PyTree,
    read: Read,
    config: DecodingConfig,
    *,
    eos_id: int,
    history: Int[Array, "B H"] | None = None,
    keys: Key[Array, " B"] | None = None,
    weights: PyTree = None,
) -> Decoded:
    """What the language model says after what it read.

    Args:
      model: a stage-2 model.
      params: its parameters.
      read: from `read_stage2`.
      config: static settings.
      eos_id: what ends a text: the newline for OPT, end of sequence for T5.
      history: from `start_history`.
      keys: one random key a row, for sampling.
      weights: what `read_stage2` was given.
    """
    assert model.config.language_model is not None

    def step(*args: Any) -> tuple[Float[Array, "B W V"], GeneratedKV]:
        return model.bind({"params": params}).language_model.decode_step(*args)

    logits, prefix = read
    prefix = dataclasses.replace(prefix, weights=weights)
    language_model = model.bind({"params": params}).language_model
    pad_id = model.config.language_model.pad_id
    decoder = Decoder(language_model.init_generated, step, eos_id, pad_id)
    return decode(decoder, logits, prefix, config, history=history, keys=keys)


def unstacked_weights(model: Blip2Stage2, params: PyTree) -> PyTree:
    """A copy of the language model's weights, as a CPU reads them fastest."""
    return model.bind({"params": params}).language_model.unstacked_weights()


def are_worth_a_copy(params: PyTree) -> bool:
    """Whether `unstacked_weights` of a stage-2 model is worth its memory here."""
    weights = params["language_model"]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
    return jax.default_backend() == "cpu" and size <= COPIED_BYTES


def start_history(
    language_model: LanguageModelConfig,
    prompt_ids: Int[Array | np.ndarray, "B T"],
    prompt_mask: Bool[Array | np.ndarray, "B T"],
    convention: str,
) -> Int[Array, "B H"]:
    """The tokens that the repetition penalty counts from the start; -1 for none.

    An encoder-decoder's start token. Else, `original`: BOS, of which a placeholder
    stood before the new tokens; `transformers5`: the prompt, BOS included.
    """
    if isinstance(language_model, T5Config):
        start = language_model.decoder_start_id
    elif convention == "transformers5":
        return jnp.where(prompt_mask, prompt_ids, -1)
    else:
        start = language_model.bos_id
    return jnp.full((prompt_ids.shape[0], 1), start, jnp.int32)
