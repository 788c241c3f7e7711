"""OPT (Zhang et al. 2022): a decoder-only language model, frozen in BLIP-2.

It has ReLU, a head tied to the token table (unless `tied_head` is False), and learned
positions that count only real tokens. All sizes are pre-norm except OPT-350m, which is
post-norm, has no final norm and embeds tokens in a narrower space.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from blip2_jax.models.language.decoder_only import DecoderOnly, vocabulary_logits
from blip2_jax.models.sizes import OPTConfig
from blip2_jax.nn.attention import KeyValue
from blip2_jax.nn.dropout import dropout, split_key
from blip2_jax.nn.kv_cache import DecodeMasks, prefill_attention, step_attention
from blip2_jax.nn.layers import (
    Mlp,
    MultiHeadAttention,
    dense,
    layer_norm,
    normal,
    subtree,
)
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
        """Compute fp32 logits; see `vocabulary_logits`."""
        if self.config.embedding_width != self.config.width:
            hidden = self.project_out(hidden)
        return vocabulary_logits(hidden.astype(self.dtype), self.token, head, on_cpu)


class OPT(DecoderOnly):
    """An OPT of any size; `LanguageModel` documents its methods."""

    config: OPTConfig

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

    def enter(
        self, embeds: Float[Array, "B T E"], positions: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], tuple[()]]:
        """Add the position embeddings; see `DecoderOnly`."""
        return self.embeddings.enter(embeds, positions), ()

    def logits(
        self, hidden: Float[Array, "B T D"], on_cpu: bool = False
    ) -> Float[Array, "B T V"]:
        """Apply the final norm and the head; see `DecoderOnly`."""
        if self.config.pre_norm:
            hidden = self.final_norm(hidden)
        head = None if self.config.tied_head else self.head["kernel"]
        return self.embeddings.logits(hidden, head, on_cpu)
