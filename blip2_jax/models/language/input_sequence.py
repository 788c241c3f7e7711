"""The input of a language model: projected queries and text."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def queries_then_text(
    queries: Float[Array, "B Q E"] | None,
    text: Float[Array, "B T E"],
    mask: Bool[Array, "B T"],
) -> tuple[Float[Array, "B S E"], Bool[Array, "B S"]]:
    """Concatenate queries and text; S = Q + T. Queries are never padding.

    Args:
      queries: projected query outputs; None = text alone.
      text: token embeddings.
      mask: True = a real token.
    """
    if queries is None:
        return text, mask.astype(bool)
    query_mask = jnp.ones(queries.shape[:2], bool)
    return (
        jnp.concatenate([queries.astype(text.dtype), text], axis=1),
        jnp.concatenate([query_mask, mask.astype(bool)], axis=1),
    )


def queries_in_text(
    queries: Float[Array, "B Q E"],
    text: Float[Array, "B T E"],
    mask: Bool[Array, "B T"],
    before: Int[Array, " B"],
) -> tuple[Float[Array, "B S E"], Bool[Array, "B S"]]:
    """Put queries behind the first columns of a text; S = Q + T.

    Args:
      queries: projected query outputs.
      text: token embeddings.
      mask: True = a real token.
      before: number of columns, padding included, that stand before the queries.
    """
    inputs, mask = queries_then_text(queries, text, mask)
    count, column = queries.shape[1], jnp.arange(inputs.shape[1])
    before = before[:, None]
    behind = jnp.where(column < before + count, column - before, column)
    order = jnp.where(column < before, column + count, behind)
    return (
        jnp.take_along_axis(inputs, order[..., None], axis=1),
        jnp.take_along_axis(mask, order, axis=1),
    )


def last_real_token(
    hidden: Float[Array, "B S D"], mask: Bool[Array, "B S"]
) -> Float[Array, "B 1 D"]:
    """Return each row's state at its last real token, with padding on either side."""
    length = mask.shape[1]
    last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)
