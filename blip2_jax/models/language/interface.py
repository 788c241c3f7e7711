"""The interface of a language model behind the Q-Former.

The projected queries enter as vectors before the text, so BLIP-2 asks a language model
only to read embeddings instead of ids. A new family consists of

- its config class in `models/sizes.py`, a `LanguageSizes` that answers what code for
  every family asks, listed in `presets.PARTS`, and named sizes in `models/presets.py`;
- one module with the methods of `LanguageModel`, a line in `MODULES`; a decoder-only
  one inherits most of them from `DecoderOnly`;
- one module in `convert/language_families` (recognition, names, settings), a line in
  its `registry`;
- its FLOP formula in `perf/flops.py`.

Conventions of batches and tokenizers:

- Decoder-only (OPT, Llama, ...): the text is `[BOS; prompt; caption; end]`, padded on
  the right in training; prompts are padded on the left in generation. The tokenizer
  decides whether there is a BOS and which token ends a text: a newline for OPT, as in
  the original. Without a prompt, BOS is a target of the last query; the batch's
  `target_mask` decides. A chat template takes the place of BOS and prompt.
- Encoder-decoder (T5): the encoder reads the queries and the prompt or caption prefix.
  The decoder starts with `config.decoder_start_id`; targets end with `config.eos_id`.

Padding may be on either side: positions and masks count only real tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from blip2_jax.models.language.llama import Llama
from blip2_jax.models.language.opt import OPT
from blip2_jax.models.language.t5 import T5
from blip2_jax.models.sizes import LanguageModelConfig
from blip2_jax.nn.kv_cache import GeneratedKV, PrefixKV

# Modules by the family of their config class.
MODULES: dict[str, Callable[..., Any]] = {
    "opt": OPT,
    "t5": T5,
    "llama": Llama,
    "phi3": Llama,
}


class LanguageModel(Protocol):
    """The methods of a language model; E is `config.embedding_width`."""

    config: LanguageModelConfig

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        """Look up token embeddings, in the space of the projected queries."""
        ...

    def training_logits(
        self,
        queries: Float[Array, "B Q E"] | None,
        batch: Mapping[str, Array],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T V"], Int[Array, "B T"], Bool[Array, "B T"]]:
        """Compute logits at the positions that predict text.

        Args:
          queries: projected query outputs; None = text alone.
          batch: decoder-only: `text_ids`, `text_mask`, `target_mask` [B, T], and
            optionally `queries_here` [B, T], True at the column before which the
            queries stand instead of before all;
            encoder-decoder: `input_ids`, `input_mask` [B, S], `target_ids`,
            `target_mask` [B, T].
          key: dropout key; None = no dropout.

        Returns:
          fp32 logits, the ids they predict, and the mask of ids that count.
        """
        ...

    def prefill(
        self,
        inputs_embeds: Float[Array, "B S E"],
        mask: Bool[Array, "B S"],
        weights: Any = None,
    ) -> tuple[Float[Array, "B V"], PrefixKV]:
        """Read queries and prompt; an encoder-decoder then reads its start token.

        Args:
          inputs_embeds: projected queries, then embeddings of the prompt.
          mask: True = a real token.
          weights: from `unstacked_weights`, read instead of the parameters here and in
            `decode_step`. The caches then are lists with one array per layer.

        Returns:
          fp32 logits of the first new token, and the KV cache.
        """
        ...

    def init_generated(self, prefix: PrefixKV, beams: int, max_new: int) -> GeneratedKV:
        """Create empty slots for `max_new` tokens of `beams` beams per row."""
        ...

    def unstacked_weights(self) -> Any:
        """Return the weights in the layout of `nn.cpu_decoding`, once for a model."""
        ...

    def decode_step(
        self,
        ids: Int[Array, "B W"],
        time: Int[Array, ""],
        prefix: PrefixKV,
        generated: GeneratedKV,
        visible: Bool[Array, "B W M"],
    ) -> tuple[Float[Array, "B W V"], GeneratedKV]:
        """Read the new token of each beam and predict the next.

        Args:
          ids: the new tokens.
          time: their 0-based index among the new tokens.
          prefix: from `prefill`, shared by the beams of a row.
          generated: from `init_generated` or the previous step.
          visible: True = a slot (time * W + beam) that the beam descends from, that of
            `time` included.

        Returns:
          fp32 logits of the next token, and the caches with this one's keys and values.
        """
        ...


def build_language_model(
    config: LanguageModelConfig,
    dtype: DTypeLike = jnp.float32,
    scan: bool = True,
    remat: str = "none",
) -> nn.Module:
    """Build the module for a configuration.

    Args:
      config: sizes.
      dtype: compute dtype; parameters are fp32 or as loaded.
      scan: scan the stacked layers instead of unrolling them (equal results).
      remat: rematerialisation policy (`nn.stack.REMAT_POLICIES`).

    Returns:
      A Flax module with the methods of `LanguageModel`.

    Raises:
      TypeError: `config` belongs to no known family.
    """
    family = getattr(config, "family", None)
    if family not in MODULES:
        known = ", ".join(MODULES)
        raise TypeError(
            f"{type(config).__name__} is no config class of the families {known}"
        )
    return MODULES[family](config, dtype, scan, remat)
