"""The compiled program that generates after a prefill, with any kind of decoder."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
from jaxtyping import Float, Int, Key, PyTree

from blip2_jax.generation.decode import decode_plan, select_results
from blip2_jax.generation.decoder import Decoded, bound_decoder
from blip2_jax.generation.decoding_config import DecodingConfig
from blip2_jax.generation.decoding_plan import (
    DecodingPlan,
    DecodingValues,
    split_config,
)
from blip2_jax.inference import inputs, programs
from blip2_jax.nn.kv_cache import PrefixKV
from blip2_jax.parallel import hosts


def decode_tokens(
    model: nn.Module,
    decoder: str,
    params: PyTree,
    logits: Float[jax.Array, "B V"],
    prefix: PrefixKV,
    config: DecodingConfig,
    *,
    eos_id: int,
    pad_id: int,
    prompt_tokens: int = 1,
    history: Int[jax.Array, "B T"] | None = None,
    keys: Key[jax.Array, " B"] | None = None,
    weights: PyTree = None,
) -> Decoded:
    """Generate tokens after a prefill.

    Args:
      model: Flax module.
      decoder: name of its submodule that generates.
      params: its parameters.
      logits: of the first new token, from a prefill.
      prefix: from the same prefill.
      config: settings; few of them select another program (`DecodingPlan`).
      eos_id: token that ends a text.
      pad_id: token of the places after the end.
      prompt_tokens: see `split_config`.
      history: tokens that the repetition penalty counts from the start.
      keys: one random key per row, for sampling.
      weights: the argument of `prefill_language_model`.
    """
    # Position tables are long enough for `values.max_new_tokens`, which the caller has
    # checked, and may be too short for all slots.
    slots = inputs.padded_length(config.max_new_tokens)
    plan, values = split_config(config, slots, prompt_tokens)
    prefix = dataclasses.replace(prefix, weights=weights)
    decoded = _decode_plan(
        model,
        decoder,
        params,
        logits,
        prefix,
        plan,
        values,
        eos_id,
        pad_id,
        history,
        keys,
    )
    return select_results(hosts.to_host(decoded), config)


@programs.compile_function(static=("model", "decoder", "plan", "eos_id", "pad_id"))
def _decode_plan(
    model: nn.Module,
    decoder: str,
    params: PyTree,
    logits: Float[jax.Array, "B V"],
    prefix: PrefixKV,
    plan: DecodingPlan,
    values: DecodingValues,
    eos_id: int,
    pad_id: int,
    history: Int[jax.Array, "B T"] | None,
    keys: Key[jax.Array, " B"] | None,
) -> Decoded:
    """Generate tokens; see `decode_tokens`."""
    bind = lambda: getattr(model.bind({"params": params}), decoder)
    bound = bound_decoder(bind, eos_id, pad_id)
    return decode_plan(bound, logits, prefix, plan, values, history=history, keys=keys)
