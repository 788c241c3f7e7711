"""The blocks of T5: RMS norms, gated GELU, attention without scale or biases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from blip2_jax.models.presets import T5Config
from blip2_jax.nn.attention import KeyValue, attention, cached_attention
from blip2_jax.nn.dropout import dropout, split_key
from blip2_jax.nn.kv_cache import (
    DecodeMasks,
    by_head,
    prefill_attention,
    step_attention,
)
from blip2_jax.nn.layers import ACTIVATIONS, MultiHeadAttention, dense
from blip2_jax.nn.masks import padding
from blip2_jax.nn.precision import PRODUCT

SCALE = 1.0  # T5 folds the usual K ** -0.5 into the initial weights


def relative_buckets(
    relative: Int[Array, "T S"], *, bidirectional: bool, buckets: int, max_distance: int
) -> Int[Array, "T S"]:
    """Which row of the bias table stands for a key at a relative position.

    Half of the rows are single distances, the other half grow logarithmically up to
    `max_distance` (T5 section 2.1). In a decoder, keys to the right share row 0.

    Args:
      relative: key position minus query position.
      bidirectional: whether the sign matters; each sign then has half of the rows.
      buckets: rows of the table.
      max_distance: from here on all distances share the last row.
    """
    offset = jnp.zeros_like(relative)
    if bidirectional:
        buckets //= 2
        offset = jnp.where(relative > 0, buckets, 0)
        distance = jnp.abs(relative)
    else:
        distance = jnp.maximum(-relative, 0)
    exact = buckets // 2
    ratio = jnp.maximum(distance, 1).astype(jnp.float32) / exact
    growth = jnp.log(ratio) / math.log(max_distance / exact) * (buckets - exact)
    far = jnp.minimum(exact + growth.astype(jnp.int32), buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)


def rms_norm(config: T5Config, dtype: DTypeLike) -> nn.Module:
    """Scales by the root mean square, computed in fp32, returned in `dtype`."""
    return nn.remat(nn.RMSNorm)(epsilon=config.layer_norm_eps, dtype=dtype)


class GatedMlp(nn.Module):
    """`down(activation(gate(x)) * up(x))`, without biases."""

    config: T5Config
    dtype: DTypeLike

    def setup(self) -> None:
        self.gate = dense(self.config.mlp_dim, self.dtype, use_bias=False)
        self.up = dense(self.config.mlp_dim, self.dtype, use_bias=False)
        self.down = dense(self.config.width, self.dtype, use_bias=False)

    def __call__(
        self, x: Float[Array, "B T D"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        return checkpoint_name(self._activate(self.gate(x), self.up(x), key), PRODUCT)

    @nn.remat
    def _activate(
        self,
        gate: Float[Array, "B T F"],
        up: Float[Array, "B T F"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B T D"]:
        inner = ACTIVATIONS[self.config.activation](gate) * up
        return self.down(dropout(inner, self.config.dropout, key))


class T5Block(nn.Module):
    """A block of the encoder or, with cross-attention, of the decoder.

    Each method serves one use of a stack; an encoder has no cross-attention
    parameters because `encode` never touches them.
    """

    config: T5Config
    dtype: DTypeLike

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        sizes = (config.width, config.heads, config.head_width, dtype)
        self.attention_norm = rms_norm(config, dtype)
        self.attention = MultiHeadAttention(*sizes, use_bias=False)
        self.cross_attention_norm = rms_norm(config, dtype)
        self.cross_attention = MultiHeadAttention(*sizes, use_bias=False)
        self.mlp_norm = rms_norm(config, dtype)
        self.mlp = GatedMlp(config, dtype)

    def encode(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B 1 #S S"],
        bias: Float[Array, "1 H S S"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B S D"], None]:
        """Self-attention over a whole sequence."""
        key, rest = split_key(key, 2)
        return self._run(x, self._attend(mask, bias, key), key=rest)

    def decode(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 T T"],
        bias: Float[Array, "1 H T T"],
        encoded: Float[Array, "B S D"],
        encoded_mask: Bool[Array, "B S"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], None]:
        """Causal self-attention over a whole target, and cross-attention."""
        key, rest = split_key(key, 2)
        cross = self.cross_attention.project_key_value(encoded)
        attend = self._attend(mask, bias, key)
        return self._run(x, attend, self._read(cross, encoded_mask), rest)

    def prefill(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, "B 1 T T"],
        bias: Float[Array, "1 H T T"],
        encoded: Float[Array, "B S D"],
        encoded_mask: Bool[Array, "B S"],
        _: None,
    ) -> tuple[Float[Array, "B T D"], tuple[KeyValue, KeyValue]]:
        """`decode` that also returns the keys and values of both attentions."""
        cross = self.cross_attention.project_key_value(encoded)

        def attend(h: Array) -> tuple[Array, KeyValue]:
            return prefill_attention(self.attention, h, mask, bias=bias, scale=SCALE)

        x, kept = self._run(x, attend, self._read(cross, encoded_mask))
        return x, (kept, by_head(cross))

    def step(
        self,
        x: Float[Array, "B W D"],
        step: DecodeMasks,
        encoded_mask: Bool[Array, "B S"],
        cached: tuple[KeyValue, KeyValue, KeyValue],
    ) -> tuple[Float[Array, "B W D"], KeyValue]:
        """Reads one token per beam; the beams of a row share both prefixes."""
        prefix, generated, cross = cached

        def attend(h: Array) -> tuple[Array, KeyValue]:
            return step_attention(
                self.attention, h, step, prefix, generated, scale=SCALE
            )

        def read(query: Array, _: None) -> Array:
            return cached_attention(query, *cross, encoded_mask, scale=SCALE)

        return self._run(x, attend, read)

    def _attend(
        self, mask: Array, bias: Array, key: PRNGKeyArray | None
    ) -> Callable[[Array], tuple[Array, None]]:
        def attend(h: Array) -> tuple[Array, None]:
            attended = self.attention(
                h,
                mask,
                bias=bias,
                scale=SCALE,
                dropout_key=key,
                dropout_rate=self.config.dropout,
            )
            return attended, None

        return attend

    def _read(
        self, cross: KeyValue, mask: Array
    ) -> Callable[[Array, PRNGKeyArray | None], Array]:
        def read(query: Array, key: PRNGKeyArray | None) -> Array:
            return attention(
                query,
                *cross,
                mask=padding(mask),
                scale=SCALE,
                dropout_key=key,
                dropout_rate=self.config.dropout,
            )

        return read

    def _run(
        self,
        x: Array,
        attend: Callable[[Array], tuple[Array, Any]],
        read: Callable[[Array, Any], Array] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Array, Any]:
        """Both attentions and the feed-forward; `read`: queries to what was encoded."""
        rate, keys = self.config.dropout, split_key(key, 5)
        attended, kept = attend(self.attention_norm(x))
        x = x + dropout(attended, rate, keys[0])
        if read is not None:
            query = self.cross_attention.project_query(self.cross_attention_norm(x))
            context = self.cross_attention.project_output(read(query, keys[1]))
            x = x + dropout(context, rate, keys[2])
        return x + dropout(self.mlp(self.mlp_norm(x), keys[3]), rate, keys[4]), kept
