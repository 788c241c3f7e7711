"""One block of the Q-Former: a post-norm BERT block with two feed-forward networks.

Self-attention covers queries and text together. Then the queries attend to the image,
in the blocks that have cross-attention, and take the query feed-forward; the text takes
its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from blip2_jax.models.sizes import QFormerConfig
from blip2_jax.nn.attention import KeyValue, attention, attention_weights, mix_values
from blip2_jax.nn.dropout import dropout, split_key
from blip2_jax.nn.folded_norm import Normed
from blip2_jax.nn.kv_cache import DecodeMasks, step_attention
from blip2_jax.nn.layers import Mlp, MultiHeadAttention, layer_norm


class AttentionSpan(NamedTuple):
    """A block of query positions and the key positions they may attend to.

    Attributes:
      queries: positions of the input whose queries attend.
      keys: positions they attend to, counted from the first cached position.
      mask: True = may attend; broadcastable to [B, H, queries, keys]; None = all.
    """

    queries: slice = slice(None)
    keys: slice = slice(None)
    mask: Bool[Array, "..."] | None = None


ALL_TO_ALL = (AttentionSpan(),)


class QFormerLayer(nn.Module):
    """A block of the Q-Former; the text branch has parameters only if it is used."""

    config: QFormerConfig
    reads_image: bool
    dtype: DTypeLike

    def setup(self) -> None:
        """Create submodules and parameters."""
        c = self.config
        head_width = c.width // c.heads
        projections = lambda folded: MultiHeadAttention(
            c.width, c.heads, head_width, self.dtype, folded=folded
        )
        norm = lambda: layer_norm(c.layer_norm_eps, self.dtype)
        mlp = lambda: Mlp(c.mlp_dim, c.width, c.activation, self.dtype)
        self.attention, self.attention_norm = projections(False), norm()
        if self.reads_image:
            self.cross_attention = projections(True)
            self.cross_attention_norm = norm()
        self.query_mlp, self.query_mlp_norm = mlp(), norm()
        self.text_mlp, self.text_mlp_norm = mlp(), norm()

    def image_key_value(self, image: Normed) -> KeyValue:
        """Project an image to cross-attention keys and values."""
        return self.cross_attention.project_key_value(image)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        num_queries: int,
        *,
        spans: Sequence[AttentionSpan] = ALL_TO_ALL,
        past: KeyValue | None = None,
        images: Sequence[KeyValue] = (),
        gate: Float[Array, "B H Q P"] | None = None,
        keep: int | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "B outputs D"], KeyValue]:
        """Run the block.

        Args:
          x: `num_queries` queries (possibly none), then the text.
          num_queries: number of query positions.
          spans: partition of the S positions, in order.
          past: cached keys and values that precede those of `x`.
          images: from `image_key_value`, for the queries; see `attend_image`.
          gate: see `attend_image`.
          keep: number of positions to compute, from the first on; all S are attended
            to. None = all.
          key: dropout key; None = no dropout.

        Returns:
          The output at the first `keep` positions, and the self-attention keys and
          values of all S positions.
        """
        keys = split_key(key, 4)
        x, key_value = self.attend(x, spans=spans, past=past, keep=keep, key=keys[0])
        queries, text = x[:, :num_queries], x[:, num_queries:]
        parts = []
        if num_queries:
            if self.reads_image and images:
                queries = self.attend_image(queries, images, gate=gate, key=keys[1])
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
    ) -> tuple[Float[Array, "B outputs D"], KeyValue]:
        """Apply self-attention of `x[:, :keep]` to `past` and `x`, residual, norm."""
        output_key, *span_keys = split_key(key, 1 + len(spans))
        own = self.attention.project_key_value(x)
        keys, values = own
        if past is not None:
            keys = jnp.concatenate([past[0], keys], axis=1)
            values = jnp.concatenate([past[1], values], axis=1)
        x = x[:, :keep]
        query = self.attention.project_query(x)
        contexts = []
        for span, span_key in zip(spans, span_keys, strict=True):
            span_query, mask = query[:, span.queries], span.mask
            if mask is not None:
                mask = mask[..., : span_query.shape[1], :]
            context = attention(
                span_query,
                keys[:, span.keys],
                values[:, span.keys],
                mask=mask,
                dropout_key=span_key,
                dropout_rate=self.config.dropout,
            )
            contexts.append(context)
        context = jnp.concatenate(contexts, axis=1)
        out = self._dropout(self.attention.project_output(context), output_key)
        return self.attention_norm(x + out), own

    def attend_image(
        self,
        queries: Float[Array, "rows Q D"],
        images: Sequence[KeyValue],
        *,
        gate: Float[Array, "rows H Q P"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "rows Q D"]:
        """Apply cross-attention of the queries to the image, residual and norm.

        Args:
          queries: equally many consecutive rows for each of B images.
          images: keys and values of B images. With several entries, the first is for
            all rows of an image but the last ones, each of which takes another entry.
          gate: factors of the attention weights, to differentiate by them; with it,
            there is one image per row, and the weights have no dropout.
          key: dropout key; None = no dropout.
        """
        keys = split_key(key, 1 + len(images))
        if gate is None:
            query = self.cross_attention.project_query(queries)
            context = self._image_context(query, images, keys)
        else:
            (image,) = images
            weights = gate * self.image_attention_weights(queries, image)
            context = mix_values(weights, image[1])
        out = self._dropout(self.cross_attention.project_output(context), keys[-1])
        return self.cross_attention_norm(queries + out)

    def _image_context(
        self,
        query: Float[Array, "rows Q H K"],
        images: Sequence[KeyValue],
        keys: Sequence[PRNGKeyArray | None],
    ) -> Float[Array, "rows Q H K"]:
        """Attend to the images; rows that share an image attend to it in one call."""
        batch = images[0][0].shape[0]
        grouped = query.reshape(batch, -1, *query.shape[1:])
        first_count = grouped.shape[1] - len(images) + 1
        splits = list(range(first_count, grouped.shape[1]))
        contexts = []
        for part, image, key in zip(
            jnp.split(grouped, splits, axis=1), images, keys, strict=False
        ):
            joined = part.reshape(batch, -1, *part.shape[3:])
            context = attention(
                joined, *image, dropout_key=key, dropout_rate=self.config.dropout
            )
            contexts.append(context.reshape(part.shape))
        return jnp.concatenate(contexts, axis=1).reshape(query.shape)

    def image_attention_weights(
        self, queries: Float[Array, "B Q D"], image: KeyValue
    ) -> Float[Array, "B H Q P"]:
        """Compute the fp32 weights of the queries' attention to the image."""
        return attention_weights(self.cross_attention.project_query(queries), image[0])

    def feed_forward_queries(
        self, queries: Float[Array, "B Q D"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B Q D"]:
        """Apply the query feed-forward, residual and norm."""
        out = self._dropout(self.query_mlp(queries), key)
        return self.query_mlp_norm(queries + out)

    def feed_forward_text(
        self, text: Float[Array, "B T D"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        """Apply the text feed-forward, residual and norm."""
        return self.text_mlp_norm(text + self._dropout(self.text_mlp(text), key))

    def decode(
        self,
        text: Float[Array, "B W D"],
        masks: DecodeMasks,
        prefix: KeyValue,
        generated: KeyValue,
    ) -> tuple[Float[Array, "B W D"], KeyValue]:
        """Read one new text token per beam; also return its keys and values."""
        attended, new = step_attention(self.attention, text, masks, prefix, generated)
        return self.feed_forward_text(self.attention_norm(text + attended)), new

    def _dropout(self, x: Array, key: PRNGKeyArray | None) -> Array:
        return dropout(x, self.config.dropout, key)
