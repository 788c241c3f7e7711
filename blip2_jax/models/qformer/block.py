"""One block of the Q-Former: post-norm BERT with two feed-forwards.

Self-attention runs over queries and text alike. Queries then read the image (in the
blocks that can) and take the query feed-forward; text takes its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from blip2_jax.models.presets import QFormerConfig
from blip2_jax.nn.attention import KeyValue, attention, attention_weights
from blip2_jax.nn.dropout import dropout, split_key
from blip2_jax.nn.folded_norm import Normed
from blip2_jax.nn.kv_cache import DecodeMasks, step_attention
from blip2_jax.nn.layers import Mlp, MultiHeadAttention, layer_norm


class AttentionSpan(NamedTuple):
    """A block of query positions and the key positions they may attend to.

    Attributes:
      queries: positions of the input whose queries attend.
      keys: positions they attend to; cached positions, if any, come first.
      mask: True = may attend, broadcastable to [B, H, queries, keys]; None = all.
    """

    queries: slice = slice(None)
    keys: slice = slice(None)
    mask: Bool[Array, "..."] | None = None


ALL_TO_ALL = (AttentionSpan(),)


class QFormerLayer(nn.Module):
    """A block of the Q-Former; the text branch is created by its first use."""

    config: QFormerConfig
    reads_image: bool
    dtype: DTypeLike

    def setup(self) -> None:
        c = self.config
        head_width = c.width // c.heads
        projections = lambda folded: MultiHeadAttention(
            c.width, c.heads, head_width, self.dtype, folded=folded
        )
        norm = lambda: layer_norm(c.layer_norm_eps, self.dtype)
        mlp = lambda: Mlp(c.mlp_dim, c.width, "gelu", self.dtype)
        self.attention, self.attention_norm = projections(False), norm()
        if self.reads_image:
            self.cross_attention = projections(True)
            self.cross_attention_norm = norm()
        self.query_mlp, self.query_mlp_norm = mlp(), norm()
        self.text_mlp, self.text_mlp_norm = mlp(), norm()

    def image_key_value(self, image: Normed) -> KeyValue:
        """Keys and values of the image, which depend on nothing else."""
        return self.cross_attention.project_key_value(image)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        num_queries: int,
        *,
        spans: Sequence[AttentionSpan] = ALL_TO_ALL,
        past: KeyValue | None = None,
        images: Sequence[KeyValue] = (),
        keep: int | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B M D"], KeyValue]:
        """Runs the block.

        Args:
          x: the queries (`num_queries` of them, possibly none), then the text.
          num_queries: how many of the N rows are queries.
          spans: cover the N positions, in order.
          past: keys and values seen before those of `x`.
          images: from `image_key_value`, read by the queries; see `attend_image`.
          keep: only the first `keep` rows are computed, M of them; all are attended
            to. None: M = N.
          key: dropout; None = none.

        Returns:
          The block's output, and the self-attention keys and values of all of `x`.
        """
        keys = split_key(key, 4)
        x, key_value = self.attend(x, spans=spans, past=past, keep=keep, key=keys[0])
        queries, text = x[:, :num_queries], x[:, num_queries:]
        parts = []
        if num_queries:
            if self.reads_image and images:
                queries = self.attend_image(queries, images, key=keys[1])
            parts.append(self.feed_forward_queries(queries, key=keys[2]))
        if text.shape[1]:
            parts.append(self.feed_forward_text(text, key=keys[3]))
        return jnp.concatenate(parts, axis=1), key_value

    def attend(
        self,
        x: Float[Array, "B S D"],
        *,
        spans: Sequence[AttentionSpan] = ALL_TO_ALL,
        past: KeyValue | None = None,
        keep: int | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B M D"], KeyValue]:
        """Self-attention of `x[:, :keep]` over `past` and `x`, residual and norm."""
        output_key, *probability_keys = split_key(key, 1 + len(spans))
        own = self.attention.project_key_value(x)
        keys, values = own
        if past is not None:
            keys = jnp.concatenate([past[0], keys], axis=1)
            values = jnp.concatenate([past[1], values], axis=1)
        x = x[:, :keep]
        query = self.attention.project_query(x)
        contexts = []
        for span, span_key in zip(spans, probability_keys, strict=True):
            span_query, mask = query[:, span.queries], span.mask
            if mask is not None:
                mask = mask[..., : span_query.shape[1], :]
            contexts.append(
                attention(
                    span_query,
                    keys[:, span.keys],
                    values[:, span.keys],
                    mask=mask,
                    dropout_key=span_key,
                    dropout_rate=self.config.dropout,
                )
            )
        context = jnp.concatenate(contexts, axis=1)
        out = self._drop(self.attention.project_output(context), output_key)
        return self.attention_norm(x + out), own

    def attend_image(
        self,
        queries: Float[Array, "S Q D"],
        images: Sequence[KeyValue],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "S Q D"]:
        """Cross-attention of the queries to the image, residual and norm.

        Args:
          queries: N = R * B rows, R neighbours to each of B images.
          images: keys and values of B images. Of several, the first is read by all
            neighbours but the last, which take one of the others each.
          key: dropout; None = none.
        """
        keys = split_key(key, 1 + len(images))
        context = self._read(self.cross_attention.project_query(queries), images, keys)
        out = self._drop(self.cross_attention.project_output(context), keys[-1])
        return self.cross_attention_norm(queries + out)

    def _read(
        self,
        queries: Float[Array, "S Q H K"],
        images: Sequence[KeyValue],
        keys: Sequence[PRNGKeyArray | None],
    ) -> Float[Array, "S Q H K"]:
        """The queries of neighbours that share an image attend to it together."""
        batch = images[0][0].shape[0]
        neighbours = queries.reshape(batch, -1, *queries.shape[1:])
        first = neighbours.shape[1] - len(images) + 1
        starts = list(range(first, neighbours.shape[1]))
        parts = jnp.split(neighbours, starts, axis=1)
        contexts = []
        for part, image, key in zip(parts, images, keys, strict=False):
            together = part.reshape(batch, -1, *part.shape[3:])
            context = attention(
                together, *image, dropout_key=key, dropout_rate=self.config.dropout
            )
            contexts.append(context.reshape(part.shape))
        return jnp.concatenate(contexts, axis=1).reshape(queries.shape)

    def image_attention_weights(
        self, queries: Float[Array, "B Q D"], image: KeyValue
    ) -> Float[Array, "B H Q P"]:
        """Where the queries look: the probabilities of `attend_image`, fp32."""
        return attention_weights(self.cross_attention.project_query(queries), image[0])

    def feed_forward_queries(
        self, queries: Float[Array, "B Q D"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B Q D"]:
        """The queries' feed-forward, residual and norm."""
        return self.query_mlp_norm(queries + self._drop(self.query_mlp(queries), key))

    def feed_forward_text(
        self, text: Float[Array, "B T D"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        """The text's feed-forward, residual and norm."""
        return self.text_mlp_norm(text + self._drop(self.text_mlp(text), key))

    def decode(
        self,
        text: Float[Array, "B W D"],
        step: DecodeMasks,
        prefix: KeyValue,
        generated: KeyValue,
    ) -> tuple[Float[Array, "B W D"], KeyValue]:
        """One new text token per beam; also returns its keys and values."""
        attended, new = step_attention(self.attention, text, step, prefix, generated)
        return self.feed_forward_text(self.attention_norm(text + attended)), new

    def _drop(self, x: Array, key: PRNGKeyArray | None) -> Array:
        return dropout(x, self.config.dropout, key)
