"""The compiled prefill with which a stage-1 model begins to write."""

from __future__ import annotations

import jax
from jaxtyping import Float, Int, PyTree, Shaped

from blip2_jax.inference import programs
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.nn.kv_cache import PrefixKV


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
