"""Log-probabilities of given tokens, computed with the decoding steps of a model.

Texts that share a prefix are scored as if they were the beams of one row: the image and
the prompt are read once. A step reads one token of each text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from blip2_jax.generation.decoder import visible_slots
from blip2_jax.nn.kv_cache import GeneratedKV, PrefixKV, init_generated

_State = tuple[Int[Array, ""], GeneratedKV, Float[Array, "B W N"]]


def token_log_probs(
    bind: Callable[[], Any],
    logits: Float[Array, "B V"],
    prefix: PrefixKV,
    ids: Int[Array, "B W N"],
    length: Int[Array, ""],
) -> Float[Array, "B W N"]:
    """Compute the log-probability of each token, given the prefix and those before it.

    Args:
      bind: returns the module with its parameters bound; see `bound_decoder`.
      logits: logits of the first token, from the module's prefill.
      prefix: the module's KV cache of the prefix.
      ids: W texts for each prefix. A text's padding follows its last token.
      length: number of tokens to read, at least 1; the others get 0.

    Returns:
      fp32 log-probabilities. Those of padding mean nothing.
    """
    batch, texts, slots = ids.shape
    # Texts never fork: each descends from itself at all times.
    ancestors = jnp.broadcast_to(jnp.arange(texts)[:, None], ids.shape)

    def record(
        scores: Float[Array, "B W N"],
        logits: Float[Array, "B W V"],
        time: Int[Array, ""],
    ) -> Float[Array, "B W N"]:
        token = jnp.take_along_axis(logits, ids[:, :, time, None], axis=-1)[..., 0]
        log_normalizer = jax.nn.logsumexp(logits, axis=-1)
        return scores.at[:, :, time].set(token - log_normalizer)

    def step(state: _State) -> _State:
        time, generated, scores = state
        last = time - 1
        logits, generated = bind().decode_step(
            ids[:, :, last], last, prefix, generated, visible_slots(ancestors, last)
        )
        return time + 1, generated, record(scores, logits, time)

    first = jnp.broadcast_to(logits[:, None], (batch, texts, logits.shape[-1]))
    scores = record(jnp.zeros(ids.shape, jnp.float32), first, jnp.int32(0))
    state = (jnp.int32(1), init_generated(prefix, texts, slots), scores)
    return jax.lax.while_loop(lambda state: state[0] < length, step, state)[2]
