"""Gradients of a large batch, computed in chunks to save activation memory.

Loss and gradient are those of the whole batch. Chunk c of n holds rows c, c + n,
c + 2n, ..., so that the rows of a sharded batch stay on their devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, PRNGKeyArray, PyTree

from blip2_jax.nn.trees import merge
from blip2_jax.parallel.row_gather import batch_axes

Metrics = dict[str, Any]


class Gradients(Protocol):
    """A function that computes a loss together with its gradient."""

    def __call__(
        self,
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Mapping[str, Any],
        key: jax.Array | None,
        negatives: Any = None,
    ) -> tuple[jax.Array, Metrics, dict[str, Any]]:
        """Return the loss, its metrics and d loss / d trainable."""
        ...


def check_options(count: int, **options: int) -> None:
    """Check that options which chunks do not support are 1.

    Raises:
      ValueError: there is more than one chunk, and an option is not 1.
    """
    for name, value in options.items():
        if count > 1 and value != 1:
            raise ValueError(
                f"config.optimizer.accumulate is {count}, so config.objective.{name} "
                f"must be 1; it is {value}"
            )


def split_rows(tree: PyTree, count: int) -> PyTree:
    """Split arrays [B, ...] into chunks, [count, B / count, ...]."""

    def split(array: Array) -> Array:
        chunks = array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1)
        return _constrain(chunks, PartitionSpec(None, batch_axes()))

    return jax.tree.map(split, tree)


def join_rows(tree: PyTree) -> PyTree:
    """Join chunks [count, B / count, ...] to arrays [B, ...]."""

    def join(chunks: Array) -> Array:
        rows = chunks.swapaxes(0, 1).reshape(-1, *chunks.shape[2:])
        return _constrain(rows, PartitionSpec(batch_axes()))

    return jax.tree.map(join, tree)


def _constrain(array: Array, spec: PartitionSpec) -> Array:
    """Constrain the sharding of an array if there is a mesh."""
    if not batch_axes():
        return array
    return jax.lax.with_sharding_constraint(array, spec)


def chunk_keys(key: PRNGKeyArray | None, count: int) -> PRNGKeyArray | None:
    """Return one key per chunk; None if `key` is None."""
    return None if key is None else jax.random.split(key, count)


def sum_over_chunks(function: Callable[..., PyTree], items: PyTree) -> PyTree:
    """Sum `function(item)` over the leading axis of `items` in a scan."""
    first = jax.tree.map(lambda x: x[0], items)
    shapes = jax.eval_shape(function, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total: PyTree, item: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, function(item)), None

    return jax.lax.scan(add, zeros, items)[0]


def mean_in_chunks(loss: Any, count: int, weight: str) -> Gradients:
    """Return a function that computes a weighted-mean loss and its gradient in chunks.

    Args:
      loss: a `training.tasks.Loss` that is a mean over elements, such as tokens.
      count: number of chunks.
      weight: the metric that holds the number of elements of a batch.
    """

    def gradients(
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Mapping[str, Any],
        key: jax.Array | None,
        negatives: Any = None,
    ) -> tuple[jax.Array, Metrics, dict[str, Any]]:
        def weighted_loss(
            trainable: Mapping[str, Any], item: Any
        ) -> tuple[jax.Array, Metrics]:
            rows, chunk_key = item
            value, metrics = loss(merge(trainable, frozen), rows, chunk_key)
            elements = jax.lax.stop_gradient(metrics.pop(weight))
            totals = {name: elements * number for name, number in metrics.items()}
            return elements * value, totals | {weight: elements}

        def chunk_gradients(item: Any) -> Any:
            return jax.value_and_grad(weighted_loss, has_aux=True)(trainable, item)

        items = (split_rows(dict(batch), count), chunk_keys(key, count))
        (total, metrics), gradient = sum_over_chunks(chunk_gradients, items)
        elements = metrics.pop(weight)
        divisor = jnp.maximum(elements, 1)
        total, metrics, gradient = jax.tree.map(
            lambda x: x / divisor, (total, metrics, gradient)
        )
        return total, metrics | {weight: elements}, gradient

    return gradients
