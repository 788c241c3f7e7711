"""T5's blocks: RMS norms, gated GELU, attention without scale or projection biases."""

from __future__ import annotations

import bisect
import functools
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from blip2_jax.models.sizes import T5Config
from blip2_jax.nn.attention import KeyValue, attention, cached_attention
from blip2_jax.nn.dropout import dropout, split_key
from blip2_jax.nn.kv_cache import (
    DecodeMasks,
    by_head,
    prefill_attention,
    step_attention,
)
from blip2_jax.nn.layers import ACTIVATIONS, GatedMlp, MultiHeadAttention, rms_norm
from blip2_jax.nn.masks import padding

SCALE = 1.0  # T5 folds the usual K ** -0.5 into the initial weights


def relative_buckets(
    relative: Int[Array, "T S"], *, bidirectional: bool, buckets: int, max_distance: int
) -> Int[Array, "T S"]:
    """Map relative positions to rows of the bias table (T5 section 2.1).

    Half of the rows are for single distances; the other half cover ranges that grow
    logarithmically up to `max_distance`. In a decoder, keys to the right map to row 0.

    Args:
      relative: key position minus query position.
      bidirectional: True = each sign has half of the rows (encoder).
      buckets: rows of the table.
      max_distance: larger distances share the last row.
    """
    offset = jnp.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        offset = jnp.where(relative > 0, buckets, 0)
        distance = jnp.abs(relative)
    else:
        distance = jnp.maximum(-relative, 0)
    exact = buckets // 2
    starts = jnp.asarray(range_starts(exact, buckets, max_distance))
    far = jnp.searchsorted(starts, distance, side="right", method="compare_all")
    return offset + jnp.where(distance < exact, distance, exact + far)


@functools.cache
def range_starts(
    exact: int, buckets: int, max_distance: int
) -> Int[np.ndarray, " ranges"]:
    """Return the smallest distance of each logarithmic range but the first.

    transformers computes the range of a distance by a float32 logarithm, which can fall
    just below an integer. A compiled logarithm rounds differently, so the limits are
    computed on the host in the same steps, each rounded to float32.

    Args:
      exact: number of rows for single distances; the first range starts here.
      buckets: number of all rows of one direction.
      max_distance: larger distances share the last row.
    """
    ranges = buckets - exact
    scale = np.float32(math.log(max_distance / exact))

    def range_of(distance: int) -> int:
        ratio = np.float32(distance) / np.float32(exact)
        return int(np.float32(math.log(ratio)) / scale * np.float32(ranges))

    distances = range(min(max_distance, np.iinfo(np.int32).max) + 1)
    starts = [
        bisect.bisect_left(distances, number, lo=exact, key=range_of)
        for number in range(1, ranges)
    ]
    return np.minimum(starts, distances[-1]).astype(np.int32)


class T5Block(nn.Module):
    """A block of the encoder or, with cross-attention, of the decoder.

    `encode` and `decode` run whole sequences; `prefill` and `step` are for generation.
    An encoder has no cross-attention parameters, because `encode` does not use them.
    """

    config: T5Config
    dtype: DTypeLike

    def setup(self) -> None:
        """Create submodules and parameters."""
        config, dtype = self.config, self.dtype
        sizes = (config.width, config.heads, config.head_width, dtype)
        self.attention_norm = rms_norm(config.layer_norm_eps, dtype)
        self.attention = MultiHeadAttention(*sizes, use_bias=False)
        self.cross_attention_norm = rms_norm(config.layer_norm_eps, dtype)
        self.cross_attention = MultiHeadAttention(*sizes, use_bias=False)
        self.mlp_norm = rms_norm(config.layer_norm_eps, dtype)
        self.mlp = GatedMlp(
            config.mlp_dim,
            config.width,
            ACTIVATIONS[config.activation],
            dtype,
            dropout=config.dropout,
        )

    def encode(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B 1 #S S"],
        bias: Float[Array, "1 H S S"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B S D"], None]:
        """Run an encoder block over a whole sequence."""
        weights_key, rest = split_key(key, 2)
        keys = split_key(rest, 5)
        x = self._self_attend(x, mask, bias, weights_key, keys[0])
        return self._feed_forward(x, keys[3], keys[4]), None

    def decode(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 T T"],
        bias: Float[Array, "1 H T T"],
        encoded: Float[Array, "B S D"],
        encoded_mask: Bool[Array, "B S"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], None]:
        """Run a decoder block over a whole target."""
        weights_key, rest = split_key(key, 2)
        keys = split_key(rest, 5)
        x = self._self_attend(x, mask, bias, weights_key, keys[0])
        cross = self.cross_attention.project_key_value(encoded)
        x = self._cross_attend(x, cross, encoded_mask, keys[1], keys[2])
        return self._feed_forward(x, keys[3], keys[4]), None

    def prefill(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 T T"],
        bias: Float[Array, "1 H T T"],
        encoded: Float[Array, "B S D"],
        encoded_mask: Bool[Array, "B S"],
        _: None,
    ) -> tuple[Float[Array, "B T D"], tuple[KeyValue, KeyValue]]:
        """Run `decode` and also return the keys and values of both attentions."""
        attended, key_value = prefill_attention(
            self.attention, self.attention_norm(x), mask, bias=bias, scale=SCALE
        )
        cross = self.cross_attention.project_key_value(encoded)
        x = self._cross_attend(x + attended, cross, encoded_mask)
        return self._feed_forward(x), (key_value, by_head(cross))

    def step(
        self,
        x: Float[Array, "B W D"],
        masks: DecodeMasks,
        encoded_mask: Bool[Array, "B S"],
        cached: tuple[KeyValue, KeyValue, KeyValue],
    ) -> tuple[Float[Array, "B W D"], KeyValue]:
        """Read one token per beam; `cached` is (prefix, generated, encoder)."""
        prefix, generated, cross = cached
        normed = self.attention_norm(x)
        attended, new = step_attention(
            self.attention, normed, masks, prefix, generated, scale=SCALE
        )
        x = x + attended
        query = self.cross_attention.project_query(self.cross_attention_norm(x))
        context = cached_attention(query, *cross, encoded_mask, scale=SCALE)
        x = x + self.cross_attention.project_output(context)
        return self._feed_forward(x), new

    def _self_attend(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "..."],
        bias: Float[Array, "..."],
        weights_key: PRNGKeyArray | None,
        output_key: PRNGKeyArray | None,
    ) -> Float[Array, "B T D"]:
        """Apply norm, self-attention and residual."""
        attended = self.attention(
            self.attention_norm(x),
            mask,
            bias=bias,
            scale=SCALE,
            dropout_key=weights_key,
            dropout_rate=self.config.dropout,
        )
        return x + dropout(attended, self.config.dropout, output_key)

    def _cross_attend(
        self,
        x: Float[Array, "B T D"],
        encoded: KeyValue,
        mask: Bool[Array, "B S"],
        weights_key: PRNGKeyArray | None = None,
        output_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T D"]:
        """Apply norm, cross-attention to the encoder's output, and residual."""
        context = attention(
            self.cross_attention.project_query(self.cross_attention_norm(x)),
            *encoded,
            mask=padding(mask),
            scale=SCALE,
            dropout_key=weights_key,
            dropout_rate=self.config.dropout,
        )
        attended = self.cross_attention.project_output(context)
        return x + dropout(attended, self.config.dropout, output_key)

    def _feed_forward(
        self,
        x: Float[Array, "B T D"],
        inner_key: PRNGKeyArray | None = None,
        output_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B T D"]:
        """Apply norm, feed-forward and residual."""
        out = self.mlp(self.mlp_norm(x), inner_key)
        return x + dropout(out, self.config.dropout, output_key)
