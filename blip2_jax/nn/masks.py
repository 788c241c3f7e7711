"""Attention masks: True where a query position may attend to a key position.

The docstrings draw each mask for two queries and a text of three tokens whose last one
is padding. Columns are [query query text text pad], or the text alone. All masks
broadcast to [B, H, T, S].
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool


def padding(mask: Bool[Array, "B S"]) -> Bool[Array, "B 1 1 S"]:
    """Let every position attend to all keys except padding (text in ITC).

    1 1 0
    """
    return mask[:, None, None, :]


def causal(mask: Bool[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """Let text attend to itself and its past, except padding.

    1 0 0
    1 1 0
    1 1 0
    """
    length = mask.shape[1]
    past = jnp.tril(jnp.ones((length, length), bool))
    return past[None, None] & padding(mask)


def causal_multimodal(
    num_queries: int, mask: Bool[Array, "B T"]
) -> Bool[Array, "B 1 T S"]:
    """Let text attend to the queries and its own past (text rows of ITG); S = Q + T.

    1 1 1 0 0
    1 1 1 1 0
    1 1 1 1 0
    """
    past = causal(mask)
    return jnp.pad(past, ((0, 0),) * 3 + ((num_queries, 0),), constant_values=True)


def bidirectional(num_queries: int, mask: Bool[Array, "B T"]) -> Bool[Array, "B 1 1 S"]:
    """Let queries and text attend to each other, except padding (ITM); S = Q + T.

    1 1 1 1 0
    """
    queries = jnp.ones((mask.shape[0], num_queries), bool)
    return padding(jnp.concatenate([queries, mask], axis=1))
