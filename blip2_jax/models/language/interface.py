"""What a language model must offer to be plugged in behind the Q-Former.

A new family is one module with these methods, one name table in `convert` and one
line in `build_language_model`. The queries enter as vectors in front of the text, so
all that BLIP-2 asks is to read embeddings instead of ids.

Conventions of the batches and tokenizers:

- decoder-only (OPT): text is `[BOS; prompt; caption; "\\n"]`, right padded in
  training, and the model is asked with left-padded prompts. BOS is `config.bos_id`
  (2); a caption ends with a newline, not with EOS. Without a prompt the BOS token is
  itself a target of the last query: the batch's `target_mask` decides.
- encoder-decoder (T5): the prompt or caption prefix goes with the queries to the
  encoder; the decoder begins with `config.decoder_start_id` and targets end with
  `config.eos_id`.

Padding may stand on either side: positions and masks count real tokens only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from blip2_jax.models.language.opt import OPT
from blip2_jax.models.language.t5 import T5
from blip2_jax.models.presets import LanguageModelConfig, OPTConfig, T5Config
from blip2_jax.nn.kv_cache import GeneratedKV, PrefixKV


class LanguageModel(Protocol):
    """The methods of a language model; E is `config.embedding_width`."""

    config: LanguageModelConfig

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        """Token embeddings, in the space that the projected queries share."""
        ...

    def training_logits(
        self,
        queries: Float[Array, "B Q E"] | None,
        batch: Mapping[str, Array],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T V"], Int[Array, "B T"], Bool[Array, "B T"]]:
        """Logits at the places that predict text, and no others.

        Args:
          queries: projected query outputs; None = text alone.
          batch: decoder-only `text_ids`, `text_mask`, `target_mask` `[B, T]`;
            encoder-decoder `input_ids`, `input_mask` `[B, S]`, `target_ids`,
            `target_mask` `[B, T]`.
          key: dropout; None = none.

        Returns:
          fp32 logits, the ids that they predict, and which of those count.
        """
        ...

    def prefill(
        self,
        inputs_embeds: Float[Array, "B S E"],
        mask: Bool[Array, "B S"],
        weights: Any = None,
    ) -> tuple[Float[Array, "B V"], PrefixKV]:
        """Reads queries and prompt: fp32 logits of the first new token, and the cache.

        An encoder-decoder encodes them and reads its start token. `weights`: from
        `unstacked_weights`, to be read in place of the parameters, here and by the steps;
        the caches then are lists, one a layer.
        """
        ...

    def init_generated(self, prefix: PrefixKV, beams: int, max_new: int) -> GeneratedKV:
        """Empty slots for N new tokens of W beams; `t * W + w` is a token's slot."""
        ...

    def unstacked_weights(self) -> Any:
        """The weights that generation reads, as a CPU reads them fastest.

        Layer by layer: a CPU would copy every layer's weights out of their stack at
        every token, which takes several times as long as reading them; and in the
        order of `weights_first`. Made once for a model.
        """
        ...

    def decode_step(
        self,
        ids: Int[Array, "B W"],
        time: Int[Array, ""],
        prefix: PrefixKV,
        generated: GeneratedKV,
        visible: Bool[Array, "B W M"],
    ) -> tuple[Float[Array, "B W V"], GeneratedKV]:
        """Each beam reads its new token of 0-based index `time`.

        Args:
          ids: the tokens.
          time: scalar.
          prefix: from `prefill`; the beams of a row share it.
          generated: from `init_generated` or the step before.
          visible: which of the M = N * W slots a beam descends from, its slot of
            `time` included.

        Returns:
          fp32 logits of the next token, and the slots with this one's written.
        """
        ...


def build_language_model(
    config: LanguageModelConfig,
    dtype: DTypeLike = jnp.float32,
    scan: bool = True,
    remat: str = "none",
) -> OPT | T5:
    """The module for a configuration.

    Args:
      config: sizes.
      dtype: compute dtype; parameters are fp32 or what was loaded.
      scan: scan the stacked layers, or unroll them (equal results).
      remat: policy of `models/stack.py`.

    Raises:
      TypeError: a configuration of no known family.
    """
    if isinstance(config, OPTConfig):
        return OPT(config, dtype, scan, remat)
    if isinstance(config, T5Config):
        return T5(config, dtype, scan, remat)
    raise TypeError(f"{type(config).__name__} is neither an OPTConfig nor a T5Config")
