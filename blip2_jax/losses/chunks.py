"""Gradients of a batch that is too large to be taken at once: a chunk at a time.

A step's loss stays the mean over its global batch and its gradient that of the whole;
only activations of one chunk are held. Chunk c of n has the rows c, c + n, c + 2n ...:
a batch that is divided over devices stays where it is.
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
    """A loss together with its gradient: how a step takes its batch."""

    def __call__(
        self,
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Mapping[str, Any],
        key: jax.Array | None,
        replay: Any = None,
    ) -> tuple[jax.Array, Metrics, dict[str, Any]]:
        """The loss, what is reported beside it, and d loss / d trainable."""
        ...


def check_options(count: int, **options: int) -> None:
    """Refuse options of a loss that the chunks of a batch cannot keep to.

    Raises:
      ValueError: there are several chunks, and an option is not 1.
    """
    for name, value in options.items():
        if count > 1 and value != 1:
            raise ValueError(
                f"config.optimizer.accumulate is {count}, so config.objective.{name} "
                f"must be 1; it is {value}"
            )


def divided(tree: PyTree, count: int) -> PyTree:
    """Every array [B, ...] as [count, B / count, ...], each device its own rows."""

    def divide(array: Array) -> Array:
        chunks = array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1)
        return _placed(chunks, PartitionSpec(None, batch_axes()))

    return jax.tree.map(divide, tree)


def joined(tree: PyTree) -> PyTree:
    """The inverse of `divided`."""

    def join(chunks: Array) -> Array:
        rows = chunks.swapaxes(0, 1).reshape(-1, *chunks.shape[2:])
        return _placed(rows, PartitionSpec(batch_axes()))

    return jax.tree.map(join, tree)


def _placed(array: Array, spec: PartitionSpec) -> Array:
    """Where there is a mesh, said to the compiler."""
    if not batch_axes():
        return array
    return jax.lax.with_sharding_constraint(array, spec)


def keys(key: PRNGKeyArray | None, count: int) -> PRNGKeyArray | None:
    """A key for each chunk; None for none."""
    return None if key is None else jax.random.split(key, count)


def summed(function: Callable[..., PyTree], items: PyTree) -> PyTree:
    """The sum of `function(item)` over the leading axis of `items`, one at a time."""
    first = jax.tree.map(lambda x: x[0], items)
    shapes = jax.eval_shape(function, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total: PyTree, item: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, function(item)), None

    return jax.lax.scan(add, zeros, items)[0]


def mean_in_chunks(loss: Any, count: int, weight: str) -> Gradients:
    """For a loss that is a mean over things that each row has some of.

    Args:
      loss: see `tasks.Loss`.
      count: of chunks.
      weight: the metric that says over how many things the loss is a mean.
    """

    def gradients(
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Mapping[str, Any],
        key: jax.Array | None,
        replay: Any = None,
    ) -> tuple[jax.Array, Metrics, dict[str, Any]]:
        def total_of(
            trainable: Mapping[str, Any], item: Any
        ) -> tuple[jax.Array, Metrics]:
            rows, chunk_key = item
            value, metrics = loss(merge(trainable, frozen), rows, chunk_key)
            things = jax.lax.stop_gradient(metrics.pop(weight))
            totals = {name: things * number for name, number in metrics.items()}
            return things * value, totals | {weight: things}

        def of_chunk(item: Any) -> Any:
            return jax.value_and_grad(total_of, has_aux=True)(trainable, item)

        items = (divided(dict(batch), count), keys(key, count))
        (total, metrics), gradient = summed(of_chunk, items)
        things = metrics.pop(weight)
        divisor = jnp.maximum(things, 1)
        total, metrics, gradient = jax.tree.map(
            lambda x: x / divisor, (total, metrics, gradient)
        )
        return total, metrics | {weight: things}, gradient

    return gradients
