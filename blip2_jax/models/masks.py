"""Attention masks: True where a row (the asker) may attend to a column.

Drawn for two queries and texts of three tokens whose last one is padding; rows and
columns run over [query query text text pad]. All masks broadcast to [B, H, T, S].
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool


def padding(mask: Bool[Array, "B S"]) -> Bool[Array, "B 1 1 S"]:
    """Everyone sees every key that is not padding.

    [1 1 0] for the text alone, whatever the row.
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


def unimodal(num_queries: int, mask: Bool[Array, "B T"]) -> Bool[Array, "B 1 N N"]:
    """ITC: queries see queries, text sees text (run as streams that attend apart).

    1 1 0 0 0
    1 1 0 0 0
    0 0 1 1 0
    0 0 1 1 0
    0 0 1 1 0
    """
    return _blocks(num_queries, mask, text_to_text=padding(mask), text_to_query=False)


def causal_multimodal(
    num_queries: int, mask: Bool[Array, "B T"]
) -> Bool[Array, "B 1 N N"]:
    """ITG: queries see queries, text sees the queries and its own past.

    1 1 0 0 0
    1 1 0 0 0
    1 1 1 0 0
    1 1 1 1 0
    1 1 1 1 0
    """
    return _blocks(num_queries, mask, text_to_text=causal(mask), text_to_query=True)


def bidirectional(num_queries: int, mask: Bool[Array, "B T"]) -> Bool[Array, "B 1 1 N"]:
    """ITM: everyone sees everyone, padding excepted; one row, the same for all.

    1 1 1 1 0
    """
    queries = jnp.ones((mask.shape[0], num_queries), bool)
    return padding(jnp.concatenate([queries, mask], axis=1))


def _blocks(
    num_queries: int,
    mask: Bool[Array, "B T"],
    *,
    text_to_text: Bool[Array, "B 1 #T T"],
    text_to_query: bool,
) -> Bool[Array, "B 1 N N"]:
    """Joins the four blocks of a mask in which queries never see the text."""
    batch, length = mask.shape
    query_to_query = jnp.ones((batch, 1, num_queries, num_queries), bool)
    query_to_text = jnp.zeros((batch, 1, num_queries, length), bool)
    seen = jnp.full((batch, 1, length, num_queries), text_to_query)
    text_to_text = jnp.broadcast_to(text_to_text, (batch, 1, length, length))
    queries = jnp.concatenate([query_to_query, query_to_text], axis=-1)
    text = jnp.concatenate([seen, text_to_text], axis=-1)
    return jnp.concatenate([queries, text], axis=-2)
