"""Self-attention with rotary positions and heads that share keys and values.

Grouped-query attention (Ainslie et al. 2023): each of G heads of keys and values serves
H / G heads of queries. These are computed as further query positions of the one head,
so that `nn.attention` needs no copies of keys and values.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from blip2_jax.nn.attention import KeyValue, attention, decode_attention
from blip2_jax.nn.kv_cache import DecodeMasks, by_head
from blip2_jax.nn.layers import dense, rms_norm
from blip2_jax.nn.rotary import Rotation, rotate


def fold_heads(
    query: Float[Array, "B T H K"], groups: int
) -> Float[Array, "B rows groups K"]:
    """Turn the heads of each group into rows, those of a position side by side."""
    batch, length, heads, width = query.shape
    query = query.reshape(batch, length, groups, heads // groups, width)
    return query.swapaxes(2, 3).reshape(batch, -1, groups, width)


def unfold_heads(
    context: Float[Array, "B rows groups K"], heads: int
) -> Float[Array, "B T inner"]:
    """Invert `fold_heads` and join the heads."""
    batch, _, groups, width = context.shape
    context = context.reshape(batch, -1, heads // groups, groups, width)
    return context.swapaxes(2, 3).reshape(batch, -1, heads * width)


class GroupedAttention(nn.Module):
    """Projections to heads, rotation, attention, and projection back.

    Attributes:
      width: width of the output.
      heads: heads of queries.
      kv_heads: heads of keys and values.
      head_width: width of a head.
      dtype: compute dtype.
      qkv_bias: queries, keys and values have biases.
      output_bias: the output has one.
      norm_eps: queries and keys are normalised head by head with this epsilon; None =
        they are not.
      scale: factor of the scores; None = K ** -0.5.
    """

    width: int
    heads: int
    kv_heads: int
    head_width: int
    dtype: DTypeLike
    qkv_bias: bool = False
    output_bias: bool = False
    norm_eps: float | None = None
    scale: float | None = None

    def setup(self) -> None:
        """Create submodules and parameters."""
        size, kv_size = (n * self.head_width for n in (self.heads, self.kv_heads))
        self.query = dense(size, self.dtype, use_bias=self.qkv_bias)
        self.key = dense(kv_size, self.dtype, use_bias=self.qkv_bias)
        self.value = dense(kv_size, self.dtype, use_bias=self.qkv_bias)
        self.output = dense(self.width, self.dtype, use_bias=self.output_bias)
        if self.norm_eps is not None:
            self.query_norm = rms_norm(self.norm_eps, self.dtype)
            self.key_norm = rms_norm(self.norm_eps, self.dtype)

    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B 1 T T"], by: Rotation
    ) -> tuple[Float[Array, "B T D"], KeyValue]:
        """Attend over a whole sequence.

        Args:
          x: input.
          mask: True = may attend.
          by: rotation of every position.

        Returns:
          The output, and keys and values in the layout of the caches.
        """
        query, key, value = self._project(x, by)
        repeats = self.heads // self.kv_heads
        context = attention(
            fold_heads(query, self.kv_heads),
            key,
            value,
            mask=jnp.repeat(mask, repeats, axis=2),
            scale=self.scale,
        )
        return self.output(unfold_heads(context, self.heads)), by_head((key, value))

    def step(
        self,
        x: Float[Array, "B W D"],
        masks: DecodeMasks,
        by: Rotation,
        prefix: KeyValue,
        generated: KeyValue,
    ) -> tuple[Float[Array, "B W D"], KeyValue]:
        """Attend from one token per beam; see `kv_cache.step_attention`."""
        query, key, value = self._project(x, by)
        repeat = lambda array: jnp.repeat(array, self.heads // self.kv_heads, axis=1)
        context = decode_attention(
            fold_heads(query, self.kv_heads),
            (repeat(key), repeat(value)),
            prefix,
            masks.prefix,
            generated,
            repeat(masks.earlier),
            scale=self.scale,
        )
        return self.output(unfold_heads(context, self.heads)), (key, value)

    def _project(
        self, x: Float[Array, "B T D"], by: Rotation
    ) -> tuple[
        Float[Array, "B T H K"],
        Float[Array, "B T groups K"],
        Float[Array, "B T groups K"],
    ]:
        """Project to rotated queries and keys, and to values."""
        query, key, value = (
            layer(x).reshape(*x.shape[:2], -1, self.head_width)
            for layer in (self.query, self.key, self.value)
        )
        if self.norm_eps is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        return rotate(query, by), rotate(key, by), value
