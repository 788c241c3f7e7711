"""What decoder-only language models share: training, prefill and decoding steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from blip2_jax.models.language.input_sequence import (
    last_real_token,
    queries_in_text,
    queries_then_text,
)
from blip2_jax.nn.cpu_decoding import matvec
from blip2_jax.nn.kv_cache import (
    GeneratedKV,
    PrefixKV,
    commit_last_token,
    decode_masks,
    init_generated,
)
from blip2_jax.nn.masks import causal
from blip2_jax.nn.precision import einsum_fp32


class DecoderOnly(nn.Module):
    """Base of decoder-only models; `LanguageModel` documents its methods.

    In `setup`, a family creates `embeddings`, the `stack` of its blocks and their
    parameters, `blocks`. It defines `enter` and `logits`. A block has the methods
    `__call__`, `prefill` and `step` of `OPTBlock`; after the mask they get what `enter`
    returns for them.
    """

    config: Any
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"

    def enter(
        self, embeds: Float[Array, "B T E"], positions: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], tuple[Any, ...]]:
        """Prepare embeddings for the blocks.

        Args:
          embeds: embeddings of queries and tokens.
          positions: count real tokens from 0 and are -1 for padding.

        Returns:
          The first block's input, and further arguments of all blocks.
        """
        raise NotImplementedError

    def logits(
        self, hidden: Float[Array, "B T D"], on_cpu: bool = False
    ) -> Float[Array, "B T V"]:
        """Compute fp32 next-token logits from the output of `hidden`.

        Args:
          hidden: states after the last block, before the final norm.
          on_cpu: read the token table as `cpu_decoding` does.
        """
        raise NotImplementedError

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        """Look up token embeddings, in the compute dtype."""
        return self.embeddings.tokens(ids)

    def hidden(
        self,
        inputs_embeds: Float[Array, "B S E"],
        mask: Bool[Array, "B S"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B S D"]:
        """Return the states after the last block, before the final norm."""
        x, shared = self.enter(inputs_embeds, _positions(mask))
        keys = None if key is None else jax.random.split(key, self.config.depth)
        return self.stack(self.blocks, x, causal(mask), *shared, per_layer=keys)[0]

    def training_logits(
        self,
        queries: Float[Array, "B Q E"] | None,
        batch: Mapping[str, Array],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T V"], Int[Array, "B T"], Bool[Array, "B T"]]:
        """Compute logits, targets and target mask of the text; see `LanguageModel`.

        The last query predicts the first text token. Without queries the first token
        is not a target. With `queries_here` the queries stand before that column of the
        text; what they push ahead of them is not predicted.
        """
        ids, targets = batch["text_ids"], batch["target_mask"]
        text, text_mask = self.embed(ids), batch["text_mask"]
        if queries is not None and "queries_here" in batch:
            before = jnp.argmax(batch["queries_here"], axis=1)
            inputs, mask = queries_in_text(queries, text, text_mask, before)
        else:
            inputs, mask = queries_then_text(queries, text, text_mask)
        hidden = self.hidden(inputs, mask, key)
        if queries is None:
            return self.logits(hidden[:, :-1]), ids[:, 1:], targets[:, 1:]
        return self.logits(hidden[:, queries.shape[1] - 1 : -1]), ids, targets

    def prefill(
        self,
        inputs_embeds: Float[Array, "B S E"],
        mask: Bool[Array, "B S"],
        weights: list[Any] | None = None,
    ) -> tuple[Float[Array, "B V"], PrefixKV]:
        """Return logits of the first new token, and the KV cache."""
        x, shared = self.enter(inputs_embeds, _positions(mask))
        blocks = self.blocks if weights is None else weights
        method = type(self.stack.block).prefill
        x, (key, value) = self.stack(blocks, x, causal(mask), *shared, method=method)
        length = mask.sum(axis=1, dtype=jnp.int32)
        logits = self.logits(last_real_token(x, mask), on_cpu=weights is not None)
        return logits[:, 0], PrefixKV(key, value, mask, length, weights=weights)

    def init_generated(self, prefix: PrefixKV, beams: int, max_new: int) -> GeneratedKV:
        """Create empty slots for the new tokens.

        Raises:
          ValueError: prefix and new tokens exceed the model's positions.
        """
        total, limit = prefix.mask.shape[1] + max_new, self.config.position_limit
        if limit is not None and total > limit:
            raise ValueError(
                f"prompt and new tokens take {total} positions; this "
                f"{self.config.title} has {limit}"
            )
        return init_generated(prefix, beams, max_new)

    def unstacked_weights(self) -> list[Any]:
        """Return the blocks' weights layer by layer; see `LanguageModel`."""
        return self.stack.unstacked_weights(self.blocks)

    def decode_step(
        self,
        ids: Int[Array, "B W"],
        time: Int[Array, ""],
        prefix: PrefixKV,
        generated: GeneratedKV,
        visible: Bool[Array, "B W M"],
    ) -> tuple[Float[Array, "B W V"], GeneratedKV]:
        """Read each beam's token of index `time`; see `LanguageModel`."""
        positions = jnp.broadcast_to(prefix.next_position[:, None] + time, ids.shape)
        x, shared = self.enter(self.embed(ids), positions)
        generated = commit_last_token(generated, time)
        cached = (
            (prefix.key, prefix.value),
            (generated.key, generated.value),
        )
        masks = decode_masks(time, prefix.mask, visible)
        blocks = self.blocks if prefix.weights is None else prefix.weights
        method = type(self.stack.block).step
        x, (new_key, new_value) = self.stack(
            blocks, x, masks, *shared, per_layer=cached, method=method
        )
        logits = self.logits(x, on_cpu=prefix.weights is not None)
        return logits, dataclasses.replace(
            generated, new_key=new_key, new_value=new_value
        )


def vocabulary_logits(
    hidden: Float[Array, "B T E"],
    table: Float[Array, "V E"],
    head: Float[Array, "E V"] | None,
    on_cpu: bool = False,
) -> Float[Array, "B T V"]:
    """Compute fp32 logits.

    Args:
      hidden: states after the final norm, in the compute dtype.
      table: token embeddings.
      head: kernel of an untied head; None: the token table.
      on_cpu: read the token table as `cpu_decoding` does.
    """
    if head is not None:
        return einsum_fp32("bte,ev->btv", hidden, head.astype(hidden.dtype))
    table = table.astype(hidden.dtype)
    if on_cpu:
        return matvec(table, hidden)
    return einsum_fp32("bte,ve->btv", hidden, table)


def _positions(mask: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """Count the real tokens of each row from 0; padding gets -1."""
    count = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    return jnp.where(mask, count - 1, -1)
