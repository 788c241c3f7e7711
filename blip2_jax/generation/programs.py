"""From images to new tokens: one traceable function per kind of model."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree, Shaped

from blip2_jax.generation.config import DecodingConfig
from blip2_jax.generation.decode import decode
from blip2_jax.generation.decoder import Decoded, Decoder
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.cache import init_generated
from blip2_jax.presets import LanguageModelConfig, T5Config


def generate_stage1(
    model: Blip2Stage1,
    params: PyTree,
    images: Shaped[Array, "B ..."],
    config: DecodingConfig,
    *,
    start_id: int,
    eos_id: int,
    pad_id: int,
    keys: Key[Array, " B"] | None = None,
) -> Decoded:
    """Captions by the Q-Former's own decoder, which continues [DEC].

    Args:
      model: a stage-1 model.
      params: its parameters.
      images: uint8 or normalised images, or features (`encode_image`).
      config: static settings.
      start_id: [DEC].
      eos_id: [SEP].
      pad_id: [PAD].
      keys: one random key a row, for sampling.
    """
    call = functools.partial(model.apply, {"params": params})
    features = call(images, method="encode_image")
    image = call(features, method="image_keys_values")
    _, query_cache = call(image, method="query_pass")
    start = jnp.full((images.shape[0], 1), start_id, jnp.int32)
    logits, prefix = call(start, query_cache, method="prefill")
    decode_step = functools.partial(call, method="decode_step")
    decoder = Decoder(init_generated, decode_step, eos_id, pad_id)
    return decode(decoder, logits, prefix, config, history=start, keys=keys)


def generate_stage2(
    model: Blip2Stage2,
    params: PyTree,
    images: Shaped[Array, "B ..."],
    prompt_ids: Int[Array, "B T"],
    prompt_mask: Bool[Array, "B T"],
    config: DecodingConfig,
    *,
    eos_id: int,
    question: tuple[Array, Array] | None = None,
    keys: Key[Array, " B"] | None = None,
) -> Decoded:
    """What the language model says behind an image and a prompt.

    Args:
      model: a stage-2 model.
      params: its parameters.
      images: uint8 or normalised images, or features (`encode_image`).
      prompt_ids: decoder-only: BOS and prompt, padded on the left;
        encoder-decoder: prompt and end token.
      prompt_mask: True = a real token.
      config: static settings.
      eos_id: what ends a text: the newline for OPT, end of sequence for T5.
      question: Q-Former ids and mask, where the model reads a question there.
      keys: one random key a row, for sampling.
    """
    call = functools.partial(model.apply, {"params": params})
    language_model = model.config.language_model
    assert language_model is not None
    features = call(images, method="encode_image")
    queries = call(features, *(question or ()), method="encode_queries")
    logits, prefix = call(queries, prompt_ids, prompt_mask, method="prefill")
    decoder = Decoder(
        functools.partial(call, method="init_generated"),
        functools.partial(call, method="decode_step"),
        eos_id,
        language_model.pad_id,
    )
    history = start_history(language_model, prompt_ids, prompt_mask, config.convention)
    return decode(decoder, logits, prefix, config, history=history, keys=keys)


def start_history(
    language_model: LanguageModelConfig,
    prompt_ids: Int[Array, "B T"],
    prompt_mask: Bool[Array, "B T"],
    convention: str,
) -> Int[Array, "B H"]:
    """The tokens that the repetition penalty counts from the start; -1 for none.

    An encoder-decoder's start token. Else, `original`: BOS, of which a placeholder
    stood before the new tokens; `transformers5`: the prompt, BOS included.
    """
    if not isinstance(language_model, T5Config) and convention == "transformers5":
        return jnp.where(prompt_mask, prompt_ids, -1)
    start: Any = (
        language_model.decoder_start_id
        if isinstance(language_model, T5Config)
        else language_model.bos_id
    )
    return jnp.full((prompt_ids.shape[0], 1), start, jnp.int32)
