"""The Q-Former: a BERT over queries and text whose queries attend to an image.

Its passes (paper section 3.2) share all parameters and differ by mask: `query_pass` and
`text_pass` for ITC, `multimodal_pass` for ITM, `generate_pass` for ITG. `joint_pass`
runs the query, text and generate passes at once. The cross-attention keys and values
depend only on the image: `image_keys_values` computes them once for all passes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from blip2_jax.models.blip_presets import BertDecoderConfig
from blip2_jax.models.qformer.block import ALL_TO_ALL, AttentionSpan, QFormerLayer
from blip2_jax.models.sizes import QFormerConfig
from blip2_jax.nn import masks
from blip2_jax.nn.attention import KeyValue
from blip2_jax.nn.dropout import dropout, split_key
from blip2_jax.nn.folded_norm import Normed
from blip2_jax.nn.kv_cache import (
    GeneratedKV,
    PrefixKV,
    by_head,
    commit_last_token,
    decode_masks,
)
from blip2_jax.nn.layers import ACTIVATIONS, dense, layer_norm, normal
from blip2_jax.nn.precision import as_rows, einsum_fp32
from blip2_jax.nn.stack import remat_policy

ImageKeyValues = tuple[KeyValue, ...]  # one per block with cross-attention, in order
QueryCache = tuple[KeyValue, ...]  # self-attention keys and values, one per block


class Embeddings(nn.Module):
    """Word and position tables, and the norm and dropout of all embeddings."""

    config: QFormerConfig | BertDecoderConfig
    dtype: DTypeLike
    text: bool = True  # False = only queries: no tables

    def setup(self) -> None:
        """Create submodules and parameters."""
        c = self.config
        if self.text:
            self.word = self.param("word", normal(), (c.vocab_size, c.width))
            shape = (c.max_positions, c.width)
            self.position = self.param("position", normal(), shape)
        self.norm = layer_norm(c.layer_norm_eps, self.dtype)

    def look_up(
        self, ids: Int[Array, "B T"], positions: Int[Array, "#B T"]
    ) -> Float[Array, "B T D"]:
        """Return fp32 word and position embeddings, before the norm."""
        return jnp.take(self.word, ids, axis=0) + jnp.take(
            self.position, positions, axis=0
        )

    def __call__(
        self, x: Float[Array, "B S D"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "B S D"]:
        """Apply norm and dropout to embedded text, queries, or both joined."""
        return dropout(self.norm(x), self.config.dropout, key)


class LanguageModelHead(nn.Module):
    """BERT's language-model head, whose decoder is the word embedding."""

    config: QFormerConfig | BertDecoderConfig
    dtype: DTypeLike

    def setup(self) -> None:
        """Create submodules and parameters."""
        self.dense = dense(self.config.width, self.dtype)
        self.norm = layer_norm(self.config.layer_norm_eps, self.dtype)
        zeros = nn.initializers.zeros_init()
        self.bias = self.param("bias", zeros, (self.config.vocab_size,))

    def __call__(
        self, hidden: Float[Array, "... D"], word: Float[Array, "V D"]
    ) -> Float[Array, "... V"]:
        """Compute fp32 logits from hidden states and the word embedding."""
        activation = ACTIVATIONS[self.config.activation]
        hidden = self.norm(activation(self.dense(hidden)))
        rows = as_rows(hidden)
        logits = einsum_fp32("rd,vd->rv", rows, word.astype(self.dtype))
        return logits.reshape(*hidden.shape[:-1], -1) + self.bias


class QFormer(nn.Module):
    """The Q-Former (paper section 3.1).

    Attributes:
      config: sizes.
      dtype: compute dtype; parameters are fp32.
      text: False = only `query_pass` works, and text has no parameters.
      remat: rematerialisation policy of the blocks (`nn.stack.REMAT_POLICIES`).
    """

    config: QFormerConfig
    dtype: DTypeLike = jnp.float32
    text: bool = True
    remat: str = "none"

    def setup(self) -> None:
        """Create submodules and parameters."""
        c = self.config
        self.embeddings = Embeddings(c, self.dtype, self.text)
        self.layer = [  # linen names them layer_0, layer_1, ...
            QFormerLayer(c, i % c.cross_attention_every == 0, self.dtype)
            for i in range(c.depth)
        ]
        self.head = LanguageModelHead(c, self.dtype)

    def image_keys_values(self, image: Normed) -> ImageKeyValues:
        """Compute the cross-attention keys and values of images."""
        return tuple(
            layer.image_key_value(image) for layer in self.layer if layer.reads_image
        )

    def query_pass(
        self,
        query_tokens: Float[Array, "Q D"],
        image: ImageKeyValues,
        *,
        gates: Sequence[Float[Array, "B H Q P"]] = (),
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B Q D"], QueryCache]:
        """Run the queries alone over the image (ITC, and stage 2 without text).

        Args:
          query_tokens: the learned queries.
          image: from `image_keys_values`.
          gates: factors of the cross-attention weights of each block that has some, to
            differentiate by them; none: 1.
          key: dropout key; None = no dropout.

        Returns:
          The queries' output, and their self-attention keys and values by block.
        """
        queries = _repeat(query_tokens, image[0][0].shape[0])
        images = [(key_value,) for key_value in image]
        return self._run_layers(
            queries, queries.shape[1], images=images, gates=gates, key=key
        )

    def text_pass(
        self,
        ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        *,
        first_only: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B outputs D"]:
        """Run text alone, bidirectional (ITC).

        Args:
          ids: tokens, [CLS] first.
          mask: True = a real token.
          first_only: return only the output of [CLS]; the last block skips the rest.
          key: dropout key; None = no dropout.
        """
        keep = 1 if first_only else None
        spans = [AttentionSpan(mask=masks.padding(mask))]
        text = self._embed_text(ids)
        return self._run_layers(text, 0, spans=spans, keep=keep, key=key)[0]

    def multimodal_pass(
        self,
        query_tokens: Float[Array, "Q D"],
        ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        image: ImageKeyValues,
        other: ImageKeyValues = (),
        *,
        queries_only: bool = False,
        gates: Sequence[Float[Array, "B H Q P"]] = (),
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B outputs D"]:
        """Run queries and text together, bidirectional, over the image (ITM).

        Args:
          query_tokens: the learned queries.
          ids: B texts.
          mask: True = a real token.
          image: from `image_keys_values`. With fewer than B images, each is shared by
            the same number of consecutive rows.
          other: of as many more images, each for the last of the rows that share one.
          queries_only: return only the queries' output; the last block skips the text.
          gates: as in `query_pass`, with one image per row.
          key: dropout key; None = no dropout.

        Returns:
          The output of the queries, followed by the text's unless `queries_only`.
        """
        queries = _repeat(query_tokens, ids.shape[0])
        joined = jnp.concatenate([queries, self._embed_text(ids)], axis=1)
        count = queries.shape[1]
        spans = [AttentionSpan(mask=masks.bidirectional(count, mask))]
        keep = count if queries_only else None
        images = tuple(zip(image, other, strict=True) if other else zip(image))
        return self._run_layers(
            joined, count, spans=spans, images=images, gates=gates, keep=keep, key=key
        )[0]

    def generate_pass(
        self,
        ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        query_cache: QueryCache,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T D"]:
        """Run causal text over the cached queries of `query_pass` (ITG).

        Args:
          ids: tokens, [DEC] first.
          mask: True = a real token.
          query_cache: from `query_pass`.
          key: dropout key; None = no dropout.
        """
        return self._run_text_after_queries(ids, mask, query_cache, key)[0]

    def joint_pass(
        self,
        query_tokens: Float[Array, "Q D"],
        ids: Int[Array, "B T"],
        caption_ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        image: ImageKeyValues,
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B D"], Float[Array, "B T D"]]:
        """Run `query_pass`, `text_pass` and `generate_pass` with one matmul per weight.

        One large matmul is faster than three, and a weight's gradient is one matmul
        instead of a sum of three.

        Args:
          query_tokens: the learned queries.
          ids: tokens of the text alone, [CLS] first.
          caption_ids: tokens of the text after the queries, [DEC] first.
          mask: True = a real token, in both texts.
          image: from `image_keys_values`.
          key: dropout key; None = no dropout.

        Returns:
          The outputs of the queries, of the [CLS] of `ids`, and of `caption_ids`.
        """
        queries = _repeat(query_tokens, ids.shape[0])
        texts = self._embed_text(caption_ids, ids)
        joined = jnp.concatenate([queries, texts], axis=1)
        count = queries.shape[1]
        end = count + ids.shape[1]  # of queries and caption
        caption_mask = masks.causal_multimodal(count, mask)
        spans = (
            AttentionSpan(slice(0, count), slice(0, count)),
            AttentionSpan(slice(count, end), slice(0, end), caption_mask),
            AttentionSpan(slice(end, None), slice(end, None), masks.padding(mask)),
        )
        images = [(key_value,) for key_value in image]
        x, _ = self._run_layers(
            joined, count, spans=spans, images=images, keep=end + 1, key=key
        )
        return x[:, :count], x[:, end], x[:, count:end]

    def lm_logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Compute fp32 logits over the vocabulary (decoder tied to the embedding)."""
        return self.head(hidden, self.embeddings.word)

    def attention_maps(
        self, query_tokens: Float[Array, "Q D"], image: ImageKeyValues
    ) -> tuple[Float[Array, "B H Q P"], ...]:
        """Return the fp32 cross-attention weights of `query_pass`, block by block."""
        x = self.embeddings(_repeat(query_tokens, image[0][0].shape[0]))
        maps, remaining = [], iter(image)
        for layer in self.layer:
            x, _ = layer.attend(x)
            if layer.reads_image:
                key_value = next(remaining)
                maps.append(layer.image_attention_weights(x, key_value))
                x = layer.attend_image(x, (key_value,))
            x = layer.feed_forward_queries(x)
        return tuple(maps)

    def prefill(
        self, ids: Int[Array, "B T"], query_cache: QueryCache
    ) -> tuple[Float[Array, "B V"], PrefixKV]:
        """Read the start of a text to be generated.

        Args:
          ids: [DEC], followed by the words that the text begins with, if any.
          query_cache: from `query_pass`.

        Returns:
          fp32 logits of the first new token, and the KV cache.
        """
        batch, length = ids.shape
        x, text_cache = self._run_text_after_queries(
            ids, jnp.ones(ids.shape, bool), query_cache, None
        )
        join = lambda *pair: jnp.concatenate(pair, axis=1)
        joined = [
            by_head(jax.tree.map(join, *key_values))
            for key_values in zip(query_cache, text_cache, strict=True)
        ]
        keys, values = zip(*joined, strict=True)
        mask = jnp.ones((batch, keys[0].shape[2]), bool)
        position = jnp.full((batch,), length, jnp.int32)
        return self.lm_logits(x[:, -1]), PrefixKV(keys, values, mask, position)

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
        step_masks = decode_masks(time, prefix.mask, visible)
        prefixes = zip(prefix.key, prefix.value, strict=True)
        slots = zip(generated.key, generated.value, strict=True)
        new_key_values = []
        for layer, prefix_layer, slots_layer in zip(
            self.layer, prefixes, slots, strict=True
        ):
            x, new = layer.decode(x, step_masks, prefix_layer, slots_layer)
            new_key_values.append(new)
        keys, values = zip(*new_key_values, strict=True)
        return self.lm_logits(x), dataclasses.replace(
            generated, new_key=keys, new_value=values
        )

    def _embed_text(self, *texts: Int[Array, "B length"]) -> Float[Array, "B T D"]:
        """Embed texts side by side; the positions of each start at 0."""
        # One look-up: gradients of several would be reduced over devices one by one.
        positions = jnp.concatenate([jnp.arange(ids.shape[1]) for ids in texts])
        ids = jnp.concatenate(texts, axis=1)
        return self.embeddings.look_up(ids, positions[None])

    def _run_text_after_queries(
        self,
        ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        query_cache: QueryCache,
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], QueryCache]:
        """Run causal text over cached queries; also return the text's cache."""
        count = query_cache[0][0].shape[1]
        spans = [AttentionSpan(mask=masks.causal_multimodal(count, mask))]
        text = self._embed_text(ids)
        return self._run_layers(text, 0, spans=spans, past=query_cache, key=key)

    def _run_layers(
        self,
        x: Float[Array, "B S D"],
        num_queries: int,
        *,
        key: PRNGKeyArray | None,
        spans: Sequence[AttentionSpan] = ALL_TO_ALL,
        past: QueryCache | None = None,
        images: Sequence[tuple[KeyValue, ...]] = (),
        gates: Sequence[Float[Array, "B H Q P"]] = (),
        keep: int | None = None,
    ) -> tuple[Float[Array, "B outputs D"], QueryCache]:
        """Run all blocks over embedded positions.

        The last block computes only the first `keep` positions, because XLA does not
        shrink a matmul whose output is sliced.
        """
        embedding_key, *keys = split_key(key, 1 + self.config.depth)
        x = self.embeddings(x, embedding_key)
        policy, caches = remat_policy(self.remat), []
        remaining_images, remaining_gates = iter(images), iter(gates)
        for index, layer in enumerate(self.layer):
            is_last = index == self.config.depth - 1
            run = functools.partial(
                QFormerLayer.__call__,
                num_queries=num_queries,
                spans=spans,
                keep=keep if is_last else None,
            )
            if policy is not None:
                run = nn.remat(run, policy=policy)
            x, cache = run(
                layer,
                x,
                past=None if past is None else past[index],
                images=next(remaining_images, ()) if layer.reads_image else (),
                gate=next(remaining_gates, None) if layer.reads_image else None,
                key=keys[index],
            )
            caches.append(cache)
        return x, tuple(caches)


def _repeat(query_tokens: Float[Array, "Q D"], batch: int) -> Float[Array, "B Q D"]:
    return jnp.broadcast_to(query_tokens, (batch, *query_tokens.shape))
