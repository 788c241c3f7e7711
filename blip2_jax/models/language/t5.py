"""T5-v1.1 and FlanT5 (Raffel et al. 2020): an encoder-decoder, frozen in BLIP-2.

The layers of a stack share one relative position bias; queries and text count as one
sequence. The head is untied. Initial values are normal with deviation 0.02, not those
of the T5 paper.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from blip2_jax.models.language.input_sequence import queries_then_text
from blip2_jax.models.language.t5_block import T5Block, relative_buckets
from blip2_jax.models.sizes import T5Config
from blip2_jax.nn.attention import DecodeBiases
from blip2_jax.nn.cpu_decoding import matvec
from blip2_jax.nn.dropout import dropout, split_key
from blip2_jax.nn.kv_cache import (
    GeneratedKV,
    PrefixKV,
    commit_last_token,
    decode_masks,
    init_generated,
    slot_times,
)
from blip2_jax.nn.layers import normal, rms_norm, subtree
from blip2_jax.nn.masks import causal, padding
from blip2_jax.nn.precision import einsum_fp32
from blip2_jax.nn.stack import Stack


class T5Stack(nn.Module):
    """Encoder or decoder: the blocks, their relative bias and the final norm."""

    config: T5Config
    depth: int
    causal: bool
    dtype: DTypeLike
    scan: bool
    remat: str

    def setup(self) -> None:
        """Create submodules and parameters."""
        config = self.config
        block = T5Block(config, self.dtype, parent=None)
        self.stack = Stack(block, self.depth, scan=self.scan, remat=self.remat)
        x, mask = jnp.zeros((1, 1, config.width), self.dtype), jnp.ones((1, 1), bool)
        bias = jnp.zeros((1, config.heads, 1, 1))
        example: tuple[Array, ...] = (x, padding(mask), bias)
        method: Any = T5Block.encode
        if self.causal:
            example, method = (*example, x, mask), T5Block.decode
        self.blocks = self.stack.parameters(self, *example, method=method)
        shape = (config.relative_buckets, config.heads)
        self.relative_bias = self.param("relative_bias", normal(), shape)
        self.final_norm = rms_norm(config.layer_norm_eps, self.dtype)

    def bias(self, relative: Int[Array, "T S"]) -> Float[Array, "1 H T S"]:
        """Return the fp32 bias of scores; `relative` = key minus query position."""
        buckets = relative_buckets(
            relative,
            bidirectional=not self.causal,
            buckets=self.config.relative_buckets,
            max_distance=self.config.relative_max_distance,
        )
        bias = self.relative_bias.astype(jnp.float32)[buckets]
        return bias.transpose(2, 0, 1)[None]

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *shared: Any,
        method: Callable[..., Any],
        per_layer: Any = None,
        layers: Any = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Run one method of the blocks, then the final norm.

        Args:
          x: input of the first block.
          *shared: passed to every block.
          method: method of `T5Block`.
          per_layer: one slice for each block, see `Stack`.
          layers: from `unstacked_weights`, instead of the module's parameters.

        Returns:
          The normed output, and the blocks' outputs.
        """
        x, outputs = self.stack(
            self.blocks if layers is None else layers,
            x,
            *shared,
            per_layer=per_layer,
            method=method,
        )
        return self.final_norm(x), outputs

    def unstacked_weights(self) -> list[Any]:
        """Return the blocks' weights layer by layer; see `cpu_decoding`."""
        return self.stack.unstacked_weights(self.blocks)

    def read(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 #T T"],
        *encoded: Array,
        key: PRNGKeyArray | None,
        layers: list[Any] | None = None,
    ) -> Float[Array, "B T D"]:
        """Run the stack over a whole sequence.

        Args:
          x: embedded tokens.
          mask: True = may attend.
          *encoded: encoder states and mask, in a decoder.
          key: dropout key; None = no dropout.
          layers: see `__call__`.
        """
        input_key, blocks_key, output_key = split_key(key, 3)
        per_layer = None
        if blocks_key is not None:
            per_layer = jax.random.split(blocks_key, self.depth)
        x = dropout(x.astype(self.dtype), self.config.dropout, input_key)
        x, _ = self(
            x,
            mask,
            self.bias(distances(x.shape[1])),
            *encoded,
            per_layer=per_layer,
            method=T5Block.decode if self.causal else T5Block.encode,
            layers=layers,
        )
        return dropout(x, self.config.dropout, output_key)


class T5(nn.Module):
    """A T5 of any size; `LanguageModel` documents its methods."""

    config: T5Config
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: str = "none"

    def setup(self) -> None:
        """Create submodules and parameters."""
        config = self.config
        stack = functools.partial(
            T5Stack, config, dtype=self.dtype, scan=self.scan, remat=self.remat
        )
        self.encoder = stack(config.depth, causal=False)
        self.decoder = stack(config.decoder_depth or config.depth, causal=True)
        table = (config.vocab_size, config.width)
        self.embeddings = self.param("embeddings", subtree("token", table))
        self.head = self.param("head", subtree("kernel", table[::-1]))

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Look up token embeddings, in the compute dtype."""
        return self.embeddings["token"][ids].astype(self.dtype)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Compute fp32 logits; an untied head, so the states are not rescaled."""
        kernel = self.head["kernel"].astype(self.dtype)
        return einsum_fp32("btd,dv->btv", hidden.astype(self.dtype), kernel)

    def encode(
        self,
        inputs_embeds: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        key: PRNGKeyArray | None = None,
        layers: list[Any] | None = None,
    ) -> Float[Array, "B S D"]:
        """Return the encoder's states, after its final norm."""
        return self.encoder.read(inputs_embeds, padding(mask), key=key, layers=layers)

    def training_logits(
        self,
        queries: Float[Array, "B Q D"] | None,
        batch: Mapping[str, Array],
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B T V"], Int[Array, "B T"], Bool[Array, "B T"]]:
        """Compute logits, targets and target mask; see `LanguageModel`.

        The encoder reads queries and `input_ids`; the decoder reads the start token and
        the targets shifted right by one.
        """
        encoder_key, decoder_key = split_key(key, 2)
        text = self.embed(batch["input_ids"])
        inputs, mask = queries_then_text(queries, text, batch["input_mask"])
        encoded = self.encode(inputs, mask, encoder_key)
        targets, target_mask = batch["target_ids"], batch["target_mask"].astype(bool)
        start = jnp.full_like(targets[:, :1], self.config.decoder_start_id)
        shifted = jnp.concatenate([start, targets[:, :-1]], axis=1)
        hidden = self.decoder.read(
            self.embed(shifted), causal(target_mask), encoded, mask, key=decoder_key
        )
        return self.logits(hidden), targets, target_mask

    def prefill(
        self,
        inputs_embeds: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        weights: dict[str, Any] | None = None,
    ) -> tuple[Float[Array, "B V"], PrefixKV]:
        """Encode, read the start token, and return the first new token's logits."""
        mask = mask.astype(bool)
        layers = weights or {"encoder": None, "decoder": None}
        encoded = self.encode(inputs_embeds, mask, layers=layers["encoder"])
        start_mask = jnp.ones((mask.shape[0], 1), bool)
        start = self.embed(jnp.full(start_mask.shape, self.config.decoder_start_id))
        hidden, ((key, value), (cross_key, cross_value)) = self.decoder(
            start,
            causal(start_mask),
            self.decoder.bias(distances(1)),
            encoded,
            mask,
            method=T5Block.prefill,
            layers=layers["decoder"],
        )
        position = jnp.ones(mask.shape[0], jnp.int32)
        prefix = PrefixKV(
            key, value, start_mask, position, cross_key, cross_value, mask, weights
        )
        return self._next_logits(hidden, prefix)[:, 0], prefix

    def init_generated(self, prefix: PrefixKV, beams: int, max_new: int) -> GeneratedKV:
        """Create empty slots for the new tokens."""
        return init_generated(prefix, beams, max_new)

    def unstacked_weights(self) -> dict[str, Any]:
        """Return blocks layer by layer and the transposed head; see `LanguageModel`."""
        return {
            "encoder": self.encoder.unstacked_weights(),
            "decoder": self.decoder.unstacked_weights(),
            "head": self.head["kernel"].astype(self.dtype).T,
        }

    def decode_step(
        self,
        ids: Int[Array, "B W"],
        time: Int[Array, ""],
        prefix: PrefixKV,
        generated: GeneratedKV,
        visible: Bool[Array, "B W M"],
    ) -> tuple[Float[Array, "B W V"], GeneratedKV]:
        """Read each beam's token of index `time`; see `LanguageModel`."""
        length, times = prefix.mask.shape[1], slot_times(visible.shape[2], ids.shape[1])
        bias = self.decoder.bias
        biases = DecodeBiases(
            prefix=bias(jnp.arange(length)[None] - length - time),
            generated=bias(times[None] - time),
            own=bias(jnp.zeros((1, 1), jnp.int32)),
        )
        step_masks = decode_masks(time, prefix.mask, visible, biases)
        generated = commit_last_token(generated, time)
        cached = (
            (prefix.key, prefix.value),
            (generated.key, generated.value),
            (prefix.cross_key, prefix.cross_value),
        )
        hidden, (new_key, new_value) = self.decoder(
            self.embed(ids),
            step_masks,
            prefix.cross_mask,
            per_layer=cached,
            method=T5Block.step,
            layers=prefix.weights and prefix.weights["decoder"],
        )
        generated = dataclasses.replace(generated, new_key=new_key, new_value=new_value)
        return self._next_logits(hidden, prefix), generated

    def _next_logits(
        self, hidden: Float[Array, "B W D"], prefix: PrefixKV
    ) -> Float[Array, "B W V"]:
        """Compute logits, with the unstacked head if there is one."""
        if prefix.weights is None:
            return self.logits(hidden)
        return matvec(prefix.weights["head"], hidden.astype(self.dtype))


def distances(length: int) -> Int[Array, "T T"]:
    """Return key position minus query position, within one sequence."""
    positions = jnp.arange(length)
    return positions[None, :] - positions[:, None]
