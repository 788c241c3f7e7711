"""BLIP's text decoder: a BERT whose blocks also attend to an image (Li et al. 2022).

A block is causal self-attention, cross-attention to the image and feed-forward, each
with its residual and followed by a norm. The keys and values of an image are computed
once; all texts about it read the same copy.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from blip2_jax.models.blip_presets import BertDecoderConfig
from blip2_jax.models.qformer.qformer import Embeddings, LanguageModelHead
from blip2_jax.nn.attention import KeyValue, cached_attention
from blip2_jax.nn.kv_cache import (
    DecodeMasks,
    GeneratedKV,
    PrefixKV,
    by_head,
    commit_last_token,
    decode_masks,
    prefill_attention,
    step_attention,
)
from blip2_jax.nn.layers import Mlp, MultiHeadAttention, layer_norm
from blip2_jax.nn.masks import causal
from blip2_jax.nn.stack import Stack


class BertDecoderBlock(nn.Module):
    """Self-attention, attention to the image and feed-forward; post-norm."""

    config: BertDecoderConfig
    dtype: DTypeLike

    def setup(self) -> None:
        """Create submodules and parameters."""
        c = self.config
        sizes = (c.width, c.heads, c.width // c.heads, self.dtype)
        norm = lambda: layer_norm(c.layer_norm_eps, self.dtype)
        self.attention, self.attention_norm = MultiHeadAttention(*sizes), norm()
        self.cross_attention = MultiHeadAttention(*sizes)
        self.cross_attention_norm = norm()
        self.mlp = Mlp(c.mlp_dim, c.width, c.activation, self.dtype)
        self.mlp_norm = norm()

    def prefill(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 T T"],
        image: Float[Array, "B P image"],
        _: None,
    ) -> tuple[Float[Array, "B T D"], tuple[KeyValue, KeyValue]]:
        """Run a whole text; also return the keys and values of text and image."""
        attended, text_cache = prefill_attention(self.attention, x, mask)
        image_cache = by_head(self.cross_attention.project_key_value(image))
        return self._finish(x, attended, image_cache), (text_cache, image_cache)

    def step(
        self,
        x: Float[Array, "B W D"],
        masks: DecodeMasks,
        cached: tuple[KeyValue, KeyValue, KeyValue],
    ) -> tuple[Float[Array, "B W D"], KeyValue]:
        """Read one token per beam; `cached` is (prefix, generated, image)."""
        prefix, generated, image_cache = cached
        attended, new = step_attention(self.attention, x, masks, prefix, generated)
        return self._finish(x, attended, image_cache), new

    def _finish(
        self,
        x: Float[Array, "B T D"],
        attended: Float[Array, "B T D"],
        image_cache: KeyValue,
    ) -> Float[Array, "B T D"]:
        """Add the self-attention to its input `x` and apply the rest of the block."""
        x = self.attention_norm(x + attended)
        query = self.cross_attention.project_query(x)
        context = cached_attention(query, *image_cache)
        x = self.cross_attention_norm(x + self.cross_attention.project_output(context))
        return self.mlp_norm(x + self.mlp(x))


class BertDecoder(nn.Module):
    """Token ids and an image's tokens to logits of the next token."""

    config: BertDecoderConfig
    image_width: int
    dtype: DTypeLike = jnp.float32
    scan: bool = True

    def setup(self) -> None:
        """Create submodules and parameters."""
        c = self.config
        self.embeddings = Embeddings(c, self.dtype)
        block = BertDecoderBlock(c, self.dtype, parent=None)
        self.stack = Stack(block, c.depth, self.scan)
        example = (
            jnp.zeros((1, 1, c.width), self.dtype),
            jnp.ones((1, 1, 1, 1), bool),
            jnp.zeros((1, 1, self.image_width), self.dtype),
        )
        self.blocks = self.stack.parameters(
            self, *example, method=BertDecoderBlock.prefill
        )
        self.head = LanguageModelHead(c, self.dtype)

    def __call__(
        self, ids: Int[Array, "B T"], image: Float[Array, "B P image"]
    ) -> Float[Array, "B T V"]:
        """Compute fp32 logits of the token after each position."""
        return self.logits(self._run(ids, image)[0])

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Compute fp32 logits from the last block's output."""
        return self.head(hidden, self.embeddings.word)

    def prefill(
        self, ids: Int[Array, "B T"], image: Float[Array, "B P image"]
    ) -> tuple[Float[Array, "B V"], PrefixKV]:
        """Read the start of a text.

        Args:
          ids: the start token, followed by the words that the text begins with.
          image: tokens of the image encoder.

        Returns:
          fp32 logits of the first new token, and the KV cache.
        """
        x, ((key, value), (image_key, image_value)) = self._run(ids, image)
        position = jnp.full(ids.shape[:1], ids.shape[1], jnp.int32)
        mask = jnp.ones(ids.shape, bool)
        prefix = PrefixKV(key, value, mask, position, image_key, image_value)
        return self.logits(x[:, -1]), prefix

    def decode_step(
        self,
        ids: Int[Array, "B W"],
        time: Int[Array, ""],
        prefix: PrefixKV,
        generated: GeneratedKV,
        visible: Bool[Array, "B W M"],
    ) -> tuple[Float[Array, "B W V"], GeneratedKV]:
        """Read one new token per beam; see `LanguageModel.decode_step`."""
        positions = jnp.broadcast_to(prefix.next_position[:, None] + time, ids.shape)
        x = self.embeddings(self.embeddings.look_up(ids, positions))
        generated = commit_last_token(generated, time)
        cached = (
            (prefix.key, prefix.value),
            (generated.key, generated.value),
            (prefix.cross_key, prefix.cross_value),
        )
        step_masks = decode_masks(time, prefix.mask, visible)
        x, (new_key, new_value) = self.stack(
            self.blocks,
            x,
            step_masks,
            per_layer=cached,
            method=BertDecoderBlock.step,
        )
        return self.logits(x), dataclasses.replace(
            generated, new_key=new_key, new_value=new_value
        )

    def _run(
        self, ids: Int[Array, "B T"], image: Float[Array, "B P image"]
    ) -> tuple[Float[Array, "B T D"], tuple[KeyValue, KeyValue]]:
        """Run all blocks; also return the keys and values of text and image."""
        positions = jnp.arange(ids.shape[1])[None]
        x = self.embeddings(self.embeddings.look_up(ids, positions))
        mask = causal(jnp.ones(ids.shape, bool))
        return self.stack(self.blocks, x, mask, image, method=BertDecoderBlock.prefill)
