"""The one entry to decoding."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from blip2_jax.generation.beam import beam_search
from blip2_jax.generation.decoder import Decoded, Decoder
from blip2_jax.generation.decoding_config import DecodingConfig
from blip2_jax.generation.sampling import sample


def decode(
    decoder: Decoder,
    logits: Float[Array, "B V"],
    prefix: Any,
    config: DecodingConfig,
    *,
    history: Int[Array, "B T"] | None = None,
    keys: Key[Array, " B"] | None = None,
) -> Decoded:
    """New tokens behind a prefix; traceable, so that `jit` gives one program.

    A row's result depends on its own logits, prefix, history and key only.

    Args:
      decoder: the model with its parameters bound.
      logits: of the first new token, from the model's prefill.
      prefix: the model's caches of what comes before; goes through unseen.
      config: static settings.
      history: tokens the repetition penalty counts from the start, -1 for none.
      keys: one random key a row, for `config.sample`.

    Returns:
      `Decoded`: ids [B,R,N], lengths [B,R], scores [B,R], best first.

    Raises:
      ValueError: sampling without keys.
    """
    if history is None:
        history = jnp.full((logits.shape[0], 1), -1, jnp.int32)
    if config.num_beams > 1:
        return beam_search(decoder, logits, prefix, history, config)
    if config.sample and keys is None:
        raise ValueError("sample=True needs keys: one jax random key for each row")
    return sample(decoder, logits, prefix, history, keys, config)
