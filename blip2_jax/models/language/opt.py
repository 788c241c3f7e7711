"""OPT (Zhang et al. 2022): a decoder-only language model, frozen in BLIP-2.

It has ReLU, a head tied to the token table (unless `tied_head` is False), and learned
positions that count only real tokens. All sizes are pre-norm except OPT-350m, which is
post-norm, has no final norm and embeds tokens in a narrower space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from blip2_jax.models.language.input_sequence import last_real_token, queries_then_text
from blip2_jax.models.sizes import OPTConfig
from blip2_jax.nn.attention import KeyValue
from blip2_jax.nn.cpu_decoding import matvec
from blip2_jax.nn.dropout import dropout, split_key
from blip2_jax.nn.kv_cache import (
    DecodeMasks,
    GeneratedKV,
    PrefixKV,
    commit_last_token,
    decode_masks,
    init_generated,
    prefill_attention,
    step_attention,
)
from blip2_jax.nn.layers import (
    Mlp,
    MultiHeadAttention,
    dense,
    layer_norm,
    normal,
    subtree,
)
from blip2_jax.nn.masks import causal
from blip2_jax.nn.precision import einsum_fp32
from blip2_jax.nn.stack import Stack

POSITION_OFFSET = 2  # rows 0 and 1 of the position table: unused, padding
LAYER_NORM_EPS = 1e-5


class OPTBlock(nn.Module):
    """Self-attention and feed-forward, over a whole sequence or for generation."""

    config: OPTConfig
    dtype: DTypeLike

    def setup(self) -> None:
        """Create submodules and parameters."""
        config, dtype = self.config, self.dtype
        self.attention_norm = layer_norm(LAYER_NORM_EPS, dtype)
        head_width = config.width // config.heads
        self.attention = MultiHeadAttention(
            config.width, config.heads, head_width, dtype
        )
        self.mlp_norm = layer_norm(LAYER_NORM_EPS, dtype)
        self.mlp = Mlp(config.mlp_dim, config.width, "relu", dtype)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B 1 S S"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B S D"], None]:
        """Run the block over a whole sequence; `key` is for dropout."""
        return self._finish(
            x, self.attention(self._attention_input(x), mask), key
        ), None

    def prefill(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B 1 S S"], _: None
    ) -> tuple[Float[Array, "B S D"], KeyValue]:
        """Run the block over a whole sequence and return its keys and values."""
        attended, key_value = prefill_attention(
            self.attention, self._attention_input(x), mask
        )
        return self._finish(x, attended), key_value

    def step(
        self,
        x: Float[Array, "B W D"],
        masks: DecodeMasks,
        cached: tuple[KeyValue, KeyValue],
    ) -> tuple[Float[Array, "B W D"], KeyValue]:
        """Read one token per beam; `cached` is (prefix, generated)."""
        attended, new = step_attention(
            self.attention, self._attention_input(x), masks, *cached
        )
        return self._finish(x, attended), new

    def _attention_input(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        return self.attention_norm(x) if self.config.pre_norm else x

    def _finish(
        self,
        x: Float[Array, "B S D"],
        attended: Float[Array, "B S D"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B S D"]:
        """Add the attention output to its input `x` and apply the feed-forward."""
        pre_norm, rate = self.config.pre_norm, self.config.dropout
        attention_key, mlp_key = split_key(key, 2)
        x = x + dropout(attended, rate, attention_key)
        if not pre_norm:
            x = self.attention_norm(x)
        out = self.mlp(self.mlp_norm(x) if pre_norm else x)
        x = x + dropout(out, rate, mlp_key)
        return x if pre_norm else self.mlp_norm(x)


class OPTEmbeddings(nn.Module):
    """Token and position tables, and OPT-350m's projections of its token space."""

    config: OPTConfig
    dtype: DTypeLike

    def setup(self) -> None:
        """Create submodules and parameters."""
        config = self.config
        rows = config.max_positions + POSITION_OFFSET
        shape = (config.vocab_size, config.embedding_width)
        self.token = self.param("token", normal(), shape)
        self.position = self.param("position", normal(), (rows, config.width))
        if config.embedding_width != config.width:
            self.project_in = dense(config.width, self.dtype, use_bias=False)
            self.project_out = dense(config.embedding_width, self.dtype, use_bias=False)

    def tokens(self, ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        """Look up token embeddings, without positions."""
        return self.token[ids].astype(self.dtype)

    def enter(
        self, embeds: Float[Array, "B T E"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Add positions, which count real tokens from 0 and are -1 for padding."""
        if self.config.embedding_width != self.config.width:
            embeds = self.project_in(embeds)
        table = self.position[positions + POSITION_OFFSET].astype(self.dtype)
        return embeds.astype(self.dtype) + table

    def logits(
        self,
        hidden: Float[Array, "B T D"],
        head: Float[Array, "E V"] | None,
        on_cpu: bool = False,
    ) -> Float[Array, "B T V"]:
        """Compute fp32 logits.

        Args:
          hidden: states after the final norm.
          head: kernel of an untied head; None: the token table.
          on_cpu: read the token table as `cpu_decoding` does.
        """
        if self.config.embedding_width != self.config.width:
            hidden = self.project_out(hidden)
        hidden = hidden.astype(self.dtype)
        if head is not None:
            return einsum_fp32("bte,ev->btv", hidden, head.astype(self.dtype))
        table = self.token.astype(self.dtype)
        if on_cpu:
            return matvec(table, hidden)
        return einsum_fp32("bte,ve->btv", hidden, table)


class OPT(nn.Module):
    """An OPT of any size; `LanguageModel` documents its methods."""

    config: OPTConfig
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"

    def setup(self) -> None:
        """Create submodules and parameters."""
        config = self.config
        self.embeddings = OPTEmbeddings(config, self.dtype)
        block = OPTBlock(config, self.dtype, parent=None)
        self.stack = Stack(block, config.depth, scan=self.scan, remat=self.remat)
        x = jnp.zeros((1, 1, config.width), self.dtype)
        mask = jnp.ones((1, 1, 1, 1), bool)
        self.blocks = self.stack.parameters(self, x, mask)
        if config.pre_norm:
            self.final_norm = layer_norm(LAYER_NORM_EPS, self.dtype)
        if not config.tied_head:
            shape = (config.embedding_width, config.vocab_size)
            self.head = self.param("head", subtree("kernel", shape))

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
        x = self.embeddings.enter(inputs_embeds, _positions(mask))
        keys = None if key is None else jax.random.split(key, self.config.depth)
        return self.stack(self.blocks, x, causal(mask), per_layer=keys)[0]

    def logits(
        self, hidden: Float[Array, "B T D"], on_cpu: bool = False
    ) -> Float[Array, "B T V"]:
        """Compute fp32 next-token logits from the output of `hidden`."""
        if self.config.pre_norm:
            hidden = self.final_norm(hidden)
        head = None if self.config.tied_head else self.head["kernel"]
        return self.embeddings.logits(hidden, head, on_cpu)

    def training_logits(
        self,
        queries: Float[Array, "B Q E"] | None,
        batch: Mapping[str, Array],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T V"], Int[Array, "B T"], Bool[Array, "B T"]]:
        """Compute logits, targets and target mask of the text; see `LanguageModel`.

        The last query predicts the first text token. Without queries the first token
        is not a target.
        """
        ids, targets = batch["text_ids"], batch["target_mask"]
        inputs, mask = queries_then_text(queries, self.embed(ids), batch["text_mask"])
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
        x = self.embeddings.enter(inputs_embeds, _positions(mask))
        blocks = self.blocks if weights is None else weights
        x, (key, value) = self.stack(blocks, x, causal(mask), method=OPTBlock.prefill)
        length = mask.sum(axis=1, dtype=jnp.int32)
        logits = self.logits(last_real_token(x, mask), on_cpu=weights is not None)
        return logits[:, 0], PrefixKV(key, value, mask, length, weights=weights)

    def init_generated(self, prefix: PrefixKV, beams: int, max_new: int) -> GeneratedKV:
        """Create empty slots for the new tokens.

        Raises:
          ValueError: prefix and new tokens exceed the position table.
        """
        total, limit = prefix.mask.shape[1] + max_new, self.config.max_positions
        if total > limit:
            raise ValueError(
                f"prompt and new tokens take {total} positions; this OPT has {limit}"
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
        x = self.embeddings.enter(self.embed(ids), positions)
        generated = commit_last_token(generated, time)
        cached = (
            (prefix.key, prefix.value),
            (generated.key, generated.value),
        )
        step_masks = decode_masks(time, prefix.mask, visible)
        blocks = self.blocks if prefix.weights is None else prefix.weights
        x, (new_key, new_value) = self.stack(
            blocks, x, step_masks, per_layer=cached, method=OPTBlock.step
        )
        logits = self.logits(x, on_cpu=prefix.weights is not None)
        return logits, dataclasses.replace(
            generated, new_key=new_key, new_value=new_value
        )


def _positions(mask: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """Count the real tokens of each row from 0; padding gets -1."""
    count = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    return jnp.where(mask, count - 1, -1)
