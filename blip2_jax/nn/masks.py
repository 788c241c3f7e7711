"""Attention masks: True where a row (the asker) may attend to a column.

Drawn for two queries and texts of three tokens whose last one is padding; columns run
over [query query text text pad], or over the text. Queries by themselves need none. All
masks broadcast to [B, H, T, S].
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool


def padding(mask: Bool[Array, "B S"]) -> Bool[Array, "B 1 1 S"]:
    """Everyone sees every key that is not padding: text by itself, in ITC.

    1 1 0
    """
    return mask[:, None, None, :]


def causal(mask: Bool[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """Text sees its own past, padding excepted.

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
    """ITG, the rows of the text: it sees the queries and its own past.

    1 1 1 0 0
    1 1 1 1 0
    1 1 1 1 0
    """
    past = causal(mask)
    return jnp.pad(past, ((0, 0),) * 3 + ((num_queries, 0),), constant_values=True)


def bidirectional(num_queries: int, mask: Bool[Array, "B T"]) -> Bool[Array, "B 1 1 S"]:
    """ITM: everyone sees everyone, padding excepted; one row, the same for all.

    1 1 1 1 0
    """
    queries = jnp.ones((mask.shape[0], num_queries), bool)
    return padding(jnp.concatenate([queries, mask], axis=1))
