"""OPT (Zhang et al. 2022): a decoder-only language model, frozen in BLIP-2.

ReLU, learned positions counted over real tokens only, tied head. All sizes normalise
before each branch except OPT-350m, which normalises after the sum, has no final norm
and embeds in a narrower space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from blip2_jax.models.language.input_sequence import last_real, queries_then_text
from blip2_jax.models.presets import OPTConfig
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
from blip2_jax.nn.layers import Mlp, MultiHeadAttention, dense, layer_norm, normal
from blip2_jax.nn.masks import causal
from blip2_jax.nn.precision import einsum_fp32
from blip2_jax.nn.stack import Stack

POSITION_OFFSET = 2  # rows 0 and 1 of the position table: unused, padding
LAYER_NORM_EPS = 1e-5


class OPTBlock(nn.Module):
    """Self-attention and feed-forward; each method serves one use of the stack."""

    config: OPTConfig
    dtype: DTypeLike

    def setup(self) -> None:
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
        """Reads a whole sequence."""
        return self._run(x, lambda h: (self.attention(h, mask), None), key)

    def prefill(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B 1 S S"], _: None
    ) -> tuple[Float[Array, "B S D"], KeyValue]:
        """Reads a whole sequence and returns its keys and values."""
        return self._run(x, lambda h: prefill_attention(self.attention, h, mask))

    def step(
        self,
        x: Float[Array, "B W D"],
        step: DecodeMasks,
        cached: tuple[KeyValue, KeyValue],
    ) -> tuple[Float[Array, "B W D"], KeyValue]:
        """Reads one token per beam and returns its keys and values."""
        return self._run(x, lambda h: step_attention(self.attention, h, step, *cached))

    def _run(
        self,
        x: Array,
        attend: Callable[[Array], tuple[Array, Any]],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Array, Any]:
        attention_key, mlp_key = split_key(key, 2)
        normed = self.attention_norm(x) if self.config.pre_norm else x
        attended, kept = attend(normed)
        x = x + dropout(attended, self.config.dropout, attention_key)
        if not self.config.pre_norm:
            x = self.attention_norm(x)
        normed = self.mlp_norm(x) if self.config.pre_norm else x
        x = x + dropout(self.mlp(normed), self.config.dropout, mlp_key)
        return x if self.config.pre_norm else self.mlp_norm(x), kept


class OPTEmbeddings(nn.Module):
    """Token and position tables, and OPT-350m's maps to and from its token space."""

    config: OPTConfig
    dtype: DTypeLike

    def setup(self) -> None:
        config = self.config
        rows = config.max_positions + POSITION_OFFSET
        shape = (config.vocab_size, config.embedding_width)
        self.token = self.param("token", normal(), shape)
        self.position = self.param("position", normal(), (rows, config.width))
        if config.embedding_width != config.width:
            self.project_in = dense(config.width, self.dtype, use_bias=False)
            self.project_out = dense(config.embedding_width, self.dtype, use_bias=False)

    def tokens(self, ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        """Embeddings as they enter the model, before positions."""
        return self.token[ids].astype(self.dtype)

    def enter(
        self, embeds: Float[Array, "B T E"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """The first block's input; positions count real tokens from 0, pads are -1."""
        if self.config.embedding_width != self.config.width:
            embeds = self.project_in(embeds)
        places = self.position[positions + POSITION_OFFSET].astype(self.dtype)
        return embeds.astype(self.dtype) + places

    def logits(
        self, hidden: Float[Array, "B T D"], few_rows: bool = False
    ) -> Float[Array, "B T V"]:
        """fp32 scores against the token table; `few_rows`: as `weights_first` says."""
        if self.config.embedding_width != self.config.width:
            hidden = self.project_out(hidden)
        table, hidden = self.token.astype(self.dtype), hidden.astype(self.dtype)
        if few_rows:
            return matvec(table, hidden)
        return einsum_fp32("bte,ve->btv", hidden, table)


class OPT(nn.Module):
    """An OPT of any size. What its methods promise stands in `language_model`."""

    config: OPTConfig
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"

    def setup(self) -> None:
        config = self.config
        self.embeddings = OPTEmbeddings(config, self.dtype)
        block = OPTBlock(config, self.dtype, parent=None)
        self.stack = Stack(block, config.depth, scan=self.scan, remat=self.remat)
        x = jnp.zeros((1, 1, config.width), self.dtype)
        mask = jnp.ones((1, 1, 1, 1), bool)
        self.blocks = self.param("blocks", self.stack.init, x, mask)
        if config.pre_norm:
            self.final_norm = layer_norm(LAYER_NORM_EPS, self.dtype)

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        """Token embeddings, in the compute dtype."""
        return self.embeddings.tokens(ids)

    def hidden(
        self,
        inputs_embeds: Float[Array, "B S E"],
        mask: Bool[Array, "B S"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B S D"]:
        """States after the last block, before the final norm."""
        x = self.embeddings.enter(inputs_embeds, _positions(mask))
        keys = None if key is None else jax.random.split(key, self.config.depth)
        return self.stack(self.blocks, x, causal(mask), per_layer=keys)[0]

    def logits(
        self, hidden: Float[Array, "B T D"], few_rows: bool = False
    ) -> Float[Array, "B T V"]:
        """fp32 next-token logits from what `hidden` returns, or a slice of it."""
        if self.config.pre_norm:
            hidden = self.final_norm(hidden)
        return self.embeddings.logits(hidden, few_rows)

    def training_logits(
        self,
        queries: Float[Array, "B Q E"] | None,
        batch: Mapping[str, Array],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T V"], Int[Array, "B T"], Bool[Array, "B T"]]:
        """Logits, targets and their mask at the text positions; see `LanguageModel`.

        The last query predicts the first text token. Without queries the first token
        has no predecessor and is no target.
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
        """Logits of the first new token, and the cache of what was read."""
        x = self.embeddings.enter(inputs_embeds, _positions(mask))
        blocks = self.blocks if weights is None else weights
        x, (key, value) = self.stack(blocks, x, causal(mask), method=OPTBlock.prefill)
        length = mask.sum(axis=1, dtype=jnp.int32)
        logits = self.logits(last_real(x, mask), few_rows=weights is not None)
        return logits[:, 0], PrefixKV(key, value, mask, length, weights=weights)

    def init_generated(self, prefix: PrefixKV, beams: int, max_new: int) -> GeneratedKV:
        """Empty slots for the tokens to come.

        Raises:
          ValueError: prefix and new tokens exceed the position table.
        """
        total, most = prefix.mask.shape[1] + max_new, self.config.max_positions
        if total > most:
            raise ValueError(f"{total} positions asked for, this OPT has {most}")
        return init_generated(prefix, beams, max_new)

    def unstacked_weights(self) -> list[Any]:
        """The blocks' weights layer by layer; see `LanguageModel`."""
        return self.stack.unstacked_weights(self.blocks)

    def decode_step(
        self,
        ids: Int[Array, "B W"],
        time: Int[Array, ""],
        prefix: PrefixKV,
        generated: GeneratedKV,
        visible: Bool[Array, "B W M"],
    ) -> tuple[Float[Array, "B W V"], GeneratedKV]:
        """Logits after each beam has read its token of index `time`."""
        positions = jnp.broadcast_to(prefix.next_position[:, None] + time, ids.shape)
        x = self.embeddings.enter(self.embed(ids), positions)
        generated = commit_last_token(generated, time)
        cached = (
            (prefix.key, prefix.value),
            (generated.key, generated.value),
        )
        step = decode_masks(time, prefix.mask, visible)
        blocks = self.blocks if prefix.weights is None else prefix.weights
        x, (new_key, new_value) = self.stack(
            blocks, x, step, per_layer=cached, method=OPTBlock.step
        )
        logits = self.logits(x, few_rows=prefix.weights is not None)
        return logits, dataclasses.replace(
            generated, new_key=new_key, new_value=new_value
        )


def _positions(mask: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """0, 1, 2, ... over the real tokens of each row; -1 on padding."""
    counted = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
    return jnp.where(mask, counted - 1, -1)
