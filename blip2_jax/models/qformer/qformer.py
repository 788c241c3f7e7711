"""The Q-Former: queries and text through one BERT, queries reading the image.

Its passes (paper section 3.2) share every parameter and differ by mask: `query_pass`
and `text_pass` for ITC, `multimodal_pass` for ITM, `generate_pass` for ITG;
`joint_pass` is the first, the second and the last at once. An image's
cross-attention keys and values depend on the image alone, so they are computed once
(`image_keys_values`) and handed to each pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from blip2_jax.models.presets import QFormerConfig
from blip2_jax.models.qformer.block import ALL_TO_ALL, AttentionSpan, QFormerLayer
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

ImageKeyValues = tuple[KeyValue, ...]  # of the blocks that read the image, in order
QueryCache = tuple[KeyValue, ...]  # self-attention keys and values, one per block


class Embeddings(nn.Module):
    """Words and positions; one norm and dropout for text and queries alike."""

    config: QFormerConfig
    dtype: DTypeLike
    text: bool = True  # False: queries alone, without the tables

    def setup(self) -> None:
        c = self.config
        if self.text:
            self.word = self.param("word", normal(), (c.vocab_size, c.width))
            shape = (c.max_positions, c.width)
            self.position = self.param("position", normal(), shape)
        self.norm = layer_norm(c.layer_norm_eps, self.dtype)

    def look_up(
        self, ids: Int[Array, "B T"], positions: Int[Array, "#B T"]
    ) -> Float[Array, "B T D"]:
        """Word and position embeddings, before the norm; fp32."""
        return jnp.take(self.word, ids, axis=0) + jnp.take(
            self.position, positions, axis=0
        )

    def __call__(
        self, x: Float[Array, "B S D"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "B S D"]:
        """Norm and dropout of embedded text, of queries, or of both joined."""
        return dropout(self.norm(x), self.config.dropout, key)


class Head(nn.Module):
    """The language-model head up to its decoder, which is the word embedding."""

    config: QFormerConfig
    dtype: DTypeLike

    def setup(self) -> None:
        self.dense = dense(self.config.width, self.dtype)
        self.norm = layer_norm(self.config.layer_norm_eps, self.dtype)
        zeros = nn.initializers.zeros_init()
        self.bias = self.param("bias", zeros, (self.config.vocab_size,))

    def __call__(
        self, hidden: Float[Array, "... D"], word: Float[Array, "V D"]
    ) -> Float[Array, "... V"]:
        """fp32 logits of the hidden states, given the word embedding."""
        hidden = self.norm(ACTIVATIONS["gelu"](self.dense(hidden)))
        rows = as_rows(hidden)
        logits = einsum_fp32("rd,vd->rv", rows, word.astype(self.dtype))
        return logits.reshape(*hidden.shape[:-1], -1) + self.bias


class QFormer(nn.Module):
    """Queries in, image read, queries out; with text beside them when asked."""

    config: QFormerConfig
    dtype: DTypeLike = jnp.float32
    text: bool = True  # False: only `query_pass`, and no parameters for text
    remat: str = "none"  # policy (`models/stack.py`) of the blocks

    def setup(self) -> None:
        c = self.config
        self.embeddings = Embeddings(c, self.dtype, self.text)
        self.layer = [  # linen names them layer_0, layer_1, ...
            QFormerLayer(c, i % c.cross_attention_every == 0, self.dtype)
            for i in range(c.depth)
        ]
        self.head = Head(c, self.dtype)

    def image_keys_values(self, image: Normed) -> ImageKeyValues:
        """Cross-attention keys and values of normed image features, once per image."""
        return tuple(
            layer.image_key_value(image) for layer in self.layer if layer.reads_image
        )

    def query_pass(
        self,
        query_tokens: Float[Array, "Q D"],
        image: ImageKeyValues,
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B Q D"], QueryCache]:
        """Queries alone read the image (ITC; all of stage 2 without text).

        Args:
          query_tokens: the learned queries.
          image: from `image_keys_values`.
          key: dropout; None = none.

        Returns:
          The queries' output, and their self-attention keys and values by block.
        """
        queries = _repeat(query_tokens, image[0][0].shape[0])
        images = [(each,) for each in image]
        return self._run(queries, queries.shape[1], images=images, key=key)

    def text_pass(
        self,
        ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        *,
        first_only: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B S D"]:
        """Text alone, bidirectional (ITC).

        Args:
          first_only: N = 1, the output of [CLS]; the last block leaves the rest out.
        """
        keep = 1 if first_only else None
        spans = [AttentionSpan(mask=masks.padding(mask))]
        return self._run(self._text(ids), 0, spans=spans, keep=keep, key=key)[0]

    def multimodal_pass(
        self,
        query_tokens: Float[Array, "Q D"],
        ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        image: ImageKeyValues,
        other: ImageKeyValues = (),
        *,
        queries_only: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B S D"]:
        """Queries and text see each other; the queries read the image (ITM).

        Args:
          ids, mask: of B texts.
          image: of as many images, or of fewer that B / images neighbours share.
          other: of as many images again, each for the last of the neighbours.
          queries_only: N = Q, the queries' output; the last block leaves out what the
            text would become there. Else N = Q + T, queries first.
        """
        queries = _repeat(query_tokens, ids.shape[0])
        joined = jnp.concatenate([queries, self._text(ids)], axis=1)
        count = queries.shape[1]
        spans = [AttentionSpan(mask=masks.bidirectional(count, mask))]
        keep = count if queries_only else None
        both = (image, other) if other else (image,)
        images = tuple(zip(*both, strict=True))
        return self._run(joined, count, spans=spans, images=images, keep=keep, key=key)[
            0
        ]

    def generate_pass(
        self,
        ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        query_cache: QueryCache,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T D"]:
        """Text sees its past and the queries as `query_pass` left them (ITG)."""
        return self._continue(ids, mask, query_cache, key)[0]

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
        """`query_pass`, `text_pass` and `generate_pass` with one product a weight.

        Products of many rows are faster, and weights that are used once have one
        gradient instead of a sum of three.

        Args:
          ids: of the text by itself, [CLS] first.
          caption_ids: of the text behind the queries, [DEC] first.
          mask: of both.
          image: from `image_keys_values`.
          key: dropout; None = none.

        Returns:
          The output of the queries, that of the [CLS] of `ids`, and that of
          `caption_ids`.
        """
        queries = _repeat(query_tokens, ids.shape[0])
        texts = (self._text(caption_ids), self._text(ids))
        joined = jnp.concatenate([queries, *texts], axis=1)
        count = queries.shape[1]
        end = count + ids.shape[1]  # of what sees the queries
        seen = masks.causal_multimodal(count, mask)
        spans = (
            AttentionSpan(slice(0, count), slice(0, count)),
            AttentionSpan(slice(count, end), slice(0, end), seen),
            AttentionSpan(slice(end, None), slice(end, None), masks.padding(mask)),
        )
        images = [(each,) for each in image]
        x, _ = self._run(
            joined, count, spans=spans, images=images, keep=end + 1, key=key
        )
        return x[:, :count], x[:, end], x[:, count:end]

    def lm_logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """fp32 logits over the vocabulary; decoder tied to the word embedding."""
        return self.head(hidden, self.embeddings.word)

    def attention_maps(
        self, query_tokens: Float[Array, "Q D"], image: ImageKeyValues
    ) -> tuple[Float[Array, "B H Q P"], ...]:
        """Where the queries of `query_pass` look, by block that reads the image."""
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
        """Reads the start of a text (at least [DEC]) that is about to be generated.

        Args:
          ids: [DEC], and words after it where the text is to begin with them.
          query_cache: from `query_pass`.

        Returns:
          Logits of the first new token, and what decoding remembers.
        """
        batch, length = ids.shape
        x, own = self._continue(ids, jnp.ones(ids.shape, bool), query_cache, None)
        joined = [
            by_head(jax.tree.map(lambda *pair: jnp.concatenate(pair, axis=1), *both))
            for both in zip(query_cache, own, strict=True)
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
        """Reads one new token per beam (`models/cache.py`) and predicts the next."""
        positions = jnp.broadcast_to(prefix.next_position[:, None] + time, ids.shape)
        x = self.embeddings(self.embeddings.look_up(ids, positions))
        generated = commit_last_token(generated, time)
        step = decode_masks(time, prefix.mask, visible)
        made = []
        caches = (prefix.key, prefix.value, generated.key, generated.value)
        for layer, key, value, *slots in zip(self.layer, *caches, strict=True):
            x, new = layer.decode(x, step, (key, value), (slots[0], slots[1]))
            made.append(new)
        keys, values = zip(*made, strict=True)
        return self.lm_logits(x), dataclasses.replace(
            generated, new_key=keys, new_value=values
        )

    def _text(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Embedded text whose positions start at 0, queries beside it or not."""
        return self.embeddings.look_up(ids, jnp.arange(ids.shape[1])[None])

    def _continue(
        self,
        ids: Int[Array, "B T"],
        mask: Bool[Array, "B T"],
        query_cache: QueryCache,
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], QueryCache]:
        """Causal text behind cached queries; also returns its own cache."""
        count = query_cache[0][0].shape[1]
        spans = [AttentionSpan(mask=masks.causal_multimodal(count, mask))]
        return self._run(self._text(ids), 0, spans=spans, past=query_cache, key=key)

    def _run(
        self,
        x: Float[Array, "B S D"],
        num_queries: int,
        *,
        key: PRNGKeyArray | None,
        spans: Sequence[AttentionSpan] = ALL_TO_ALL,
        past: QueryCache | None = None,
        images: Sequence[tuple[KeyValue, ...]] = (),
        keep: int | None = None,
    ) -> tuple[Float[Array, "B M D"], QueryCache]:
        """Embedded rows through all blocks; the last computes `keep` of them alone.

        Whatever else a compiler removes, it does not narrow a product whose output is
        read in part.
        """

        def run(layer: QFormerLayer, x: Array, last: bool, **arrays: Any) -> Any:
            rows = keep if last else None
            return layer(x, num_queries, spans=spans, keep=rows, **arrays)

        embedding_key, *keys = split_key(key, 1 + self.config.depth)
        x = self.embeddings(x, embedding_key)
        policy, remaining, caches = remat_policy(self.remat), iter(images), []
        if policy is not None:
            run = nn.remat(run, policy=policy, static_argnums=(2,))
        for index, layer in enumerate(self.layer):
            x, cache = run(
                layer,
                x,
                index == self.config.depth - 1,
                past=None if past is None else past[index],
                images=next(remaining, ()) if layer.reads_image else (),
                key=keys[index],
            )
            caches.append(cache)
        return x, tuple(caches)


def _repeat(query_tokens: Float[Array, "Q D"], batch: int) -> Float[Array, "B Q D"]:
    return jnp.broadcast_to(query_tokens, (batch, *query_tokens.shape))
