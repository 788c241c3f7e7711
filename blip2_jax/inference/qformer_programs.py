"""The compiled programs with which a stage-1 model writes: prefill and decoding."""

from __future__ import annotations

import jax
from jaxtyping import Float, Int, Key, PyTree, Shaped

from blip2_jax.generation.decode import decode_plan, select_results
from blip2_jax.generation.decoder import Decoded, bound_decoder
from blip2_jax.generation.decoding_config import DecodingConfig
from blip2_jax.generation.decoding_plan import (
    DecodingPlan,
    DecodingValues,
    split_config,
)
from blip2_jax.inference import inputs, programs
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.nn.kv_cache import PrefixKV
from blip2_jax.parallel import hosts


# Prefill and decoding are compiled separately, so that other decoding settings do not
# recompile the prefill, which contains the image encoder.
@programs.compile_function(static=("model",))
def prefill_qformer(
    model: Blip2Stage1,
    params: PyTree,
    images: Shaped[jax.Array, "B ..."],
    start_ids: Int[jax.Array, "B T"],
) -> tuple[Float[jax.Array, "B V"], PrefixKV]:
    """Run a stage-1 model up to the logits of the first new token.

    Args:
      model: Flax module.
      params: its parameters.
      images: uint8 or normalised images, or features from `encode_image`.
      start_ids: [DEC] and the first tokens of the captions.
    """
    bound = model.bind({"params": params})
    image = bound.image_keys_values(bound.encode_image(images))
    _, query_cache = bound.qformer.query_pass(bound.query_tokens, image)
    return bound.qformer.prefill(start_ids, query_cache)


def decode_with_qformer(
    model: Blip2Stage1,
    params: PyTree,
    logits: Float[jax.Array, "B V"],
    prefix: PrefixKV,
    config: DecodingConfig,
    *,
    eos_id: int,
    pad_id: int,
    history: Int[jax.Array, "B T"] | None = None,
    keys: Key[jax.Array, " B"] | None = None,
) -> Decoded:
    """Generate tokens after `prefill_qformer`.

    Args:
      model: Flax module.
      params: its parameters.
      logits: from `prefill_qformer`.
      prefix: from `prefill_qformer`.
      config: settings; few of them select another program (`DecodingPlan`).
      eos_id: [SEP].
      pad_id: [PAD].
      history: tokens that the repetition penalty counts from the start.
      keys: one random key per row, for sampling.
    """
    plan, values = split_config(config, inputs.padded_length(config.max_new_tokens))
    decoded = _decode_plan(
        model, params, logits, prefix, plan, values, eos_id, pad_id, history, keys
    )
    return select_results(hosts.to_host(decoded), config)


@programs.compile_function(static=("model", "plan", "eos_id", "pad_id"))
def _decode_plan(
    model: Blip2Stage1,
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
    """Generate tokens; see `decode_with_qformer`."""
    bind = lambda: model.bind({"params": params}).qformer
    decoder = bound_decoder(bind, eos_id, pad_id)
    return decode_plan(
        decoder, logits, prefix, plan, values, history=history, keys=keys
    )
