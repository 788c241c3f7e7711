"""What a training step changes."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """All that differs between two steps, and so all that a checkpoint must hold.

    The randomness of a step is `step_key(seed, step)`, and the data's position is
    `step * batch_size`: neither is stored.

    Attributes:
      step: int32 scalar, the number of batches seen.
      trainable: nested dict of fp32 parameters.
      optimizer: the optax state over `trainable`.
    """

    step: jax.Array
    trainable: dict[str, Any]
    optimizer: Any


def create_state(
    trainable: dict[str, Any], optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step. Works under `jax.eval_shape`."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


def step_key(seed: int, step: jax.Array | int) -> jax.Array:
    """The key of all randomness of one step; the same on any mesh."""
    return jax.random.fold_in(jax.random.key(seed), step)
