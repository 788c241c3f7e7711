"""Llama and its relatives: Vicuna, Mistral, Qwen2, Qwen3, Granite, SmolLM2.

Decoder-only, pre-norm with RMS norms, rotary positions that count only real tokens,
heads that share keys and values, a gated feed-forward with SiLU. `LlamaConfig` has what
the families differ in: biases, norms of queries and keys, Granite's multipliers.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from blip2_jax.models.language.decoder_only import DecoderOnly, vocabulary_logits
from blip2_jax.models.sizes import LlamaConfig
from blip2_jax.nn import rotary
from blip2_jax.nn.attention import KeyValue
from blip2_jax.nn.grouped_attention import GroupedAttention
from blip2_jax.nn.kv_cache import DecodeMasks
from blip2_jax.nn.layers import GatedMlp, normal, rms_norm, subtree
from blip2_jax.nn.stack import Stack


def rotary_frequencies(config: LlamaConfig) -> Float32[np.ndarray, " half"]:
    """Return the frequencies of the rotary positions, scaled as the sizes say.

    They are those within `config.position_limit`, where "dynamic" scales nothing.
    """
    theta = config.rope_theta
    frequency = rotary.frequencies(config.rotary_width, theta)
    bounds = (
        config.rope_factor,
        config.rope_low_factor,
        config.rope_high_factor,
        config.rope_original_positions,
    )
    if config.rope_scaling == "linear":
        return (frequency / np.float32(config.rope_factor)).astype(np.float32)
    if config.rope_scaling == "llama3":
        return rotary.stretch_low_frequencies(frequency, *bounds)
    if config.rope_scaling == "yarn":
        return rotary.stretch_slow_pairs(
            frequency, theta, *bounds, config.rope_truncate
        )
    if config.rope_scaling == "longrope":
        return frequency / np.array(config.rope_short_factors, np.float32)
    return frequency


class LlamaBlock(nn.Module):
    """Self-attention and feed-forward, over a whole sequence or for generation."""

    config: LlamaConfig
    dtype: DTypeLike

    def setup(self) -> None:
        """Create submodules and parameters."""
        config, dtype, eps = self.config, self.dtype, self.config.layer_norm_eps
        self.attention_norm = rms_norm(eps, dtype)
        self.attention = GroupedAttention(
            config.width,
            config.heads,
            config.kv_heads,
            config.head_width,
            dtype,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            norm_eps=eps if config.query_key_norm else None,
            scale=config.attention_scale,
        )
        self.mlp_norm = rms_norm(eps, dtype)
        self.mlp = GatedMlp(
            config.mlp_dim, config.width, jax.nn.silu, dtype, use_bias=config.mlp_bias
        )

    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B 1 S S"],
        rotation: rotary.Rotation,
        _: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B S D"], None]:
        """Run the block over a whole sequence; there is no dropout."""
        return self.prefill(x, mask, rotation, None)[0], None

    def prefill(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B 1 S S"],
        rotation: rotary.Rotation,
        _: None,
    ) -> tuple[Float[Array, "B S D"], KeyValue]:
        """Run the block over a whole sequence and return its keys and values."""
        attended, key_value = self.attention(self.attention_norm(x), mask, rotation)
        return self._finish(x, attended), key_value

    def step(
        self,
        x: Float[Array, "B W D"],
        masks: DecodeMasks,
        rotation: rotary.Rotation,
        cached: tuple[KeyValue, KeyValue],
    ) -> tuple[Float[Array, "B W D"], KeyValue]:
        """Read one token per beam; `cached` is (prefix, generated)."""
        normed = self.attention_norm(x)
        attended, new = self.attention.step(normed, masks, rotation, *cached)
        return self._finish(x, attended), new

    def _finish(
        self, x: Float[Array, "B S D"], attended: Float[Array, "B S D"]
    ) -> Float[Array, "B S D"]:
        """Add the attention output to its input `x` and apply the feed-forward."""
        scale = self.config.residual_scale
        x = x + attended * scale
        return x + self.mlp(self.mlp_norm(x)) * scale


class TokenTable(nn.Module):
    """The table of token embeddings."""

    config: LlamaConfig
    dtype: DTypeLike

    def setup(self) -> None:
        """Create the parameter."""
        shape = (self.config.vocab_size, self.config.width)
        self.token = self.param("token", normal(), shape)

    def tokens(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Look up token embeddings."""
        return self.token[ids].astype(self.dtype)

    def logits(
        self,
        hidden: Float[Array, "B T D"],
        head: Float[Array, "D V"] | None,
        on_cpu: bool = False,
    ) -> Float[Array, "B T V"]:
        """Compute fp32 logits; see `vocabulary_logits`."""
        return vocabulary_logits(hidden, self.token, head, on_cpu)


class Llama(DecoderOnly):
    """A model of the Llama family; `LanguageModel` documents its methods."""

    config: LlamaConfig

    def setup(self) -> None:
        """Create submodules and parameters."""
        config = self.config
        self.embeddings = TokenTable(config, self.dtype)
        block = LlamaBlock(config, self.dtype, parent=None)
        self.stack = Stack(block, config.depth, scan=self.scan, remat=self.remat)
        x = jnp.zeros((1, 1, config.width), self.dtype)
        mask, angle = (
            jnp.ones((1, 1, 1, 1), bool),
            jnp.zeros((1, 1, config.rotary_width // 2)),
        )
        self.blocks = self.stack.parameters(self, x, mask, (angle, angle))
        self.final_norm = rms_norm(config.layer_norm_eps, self.dtype)
        if not config.tied_head:
            shape = (config.width, config.vocab_size)
            self.head = self.param("head", subtree("kernel", shape))

    def enter(
        self, embeds: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], tuple[rotary.Rotation]]:
        """Scale the embeddings and compute the rotation; see `DecoderOnly`."""
        config = self.config
        rotation = rotary.rotation(
            positions, rotary_frequencies(config), config.rope_attention_factor
        )
        embeds = embeds.astype(self.dtype) * config.embedding_scale
        return embeds, (rotation,)

    def logits(
        self, hidden: Float[Array, "B T D"], on_cpu: bool = False
    ) -> Float[Array, "B T V"]:
        """Apply the final norm and the head; see `DecoderOnly`."""
        head = None if self.config.tied_head else self.head["kernel"]
        logits = self.embeddings.logits(self.final_norm(hidden), head, on_cpu)
        return logits / self.config.logits_divisor
