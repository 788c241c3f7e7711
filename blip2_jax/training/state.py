"""The training state and the random key of a step."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes; checkpoints store it.

    The random key of a step is `step_key(seed, step)` and the position in the data is
    `step * batch_size`, so that neither is stored.

    Attributes:
      step: int32 scalar, the number of steps taken.
      trainable: nested dict of fp32 parameters.
      optimizer: the optax state of `trainable`.
    """

    step: jax.Array
    trainable: dict[str, Any]
    optimizer: Any


def create_state(
    trainable: dict[str, Any], optimizer: optax.GradientTransformation
) -> TrainState:
    """Create the state before the first step. Works under `jax.eval_shape`."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


def step_key(seed: int, step: jax.Array | int) -> jax.Array:
    """Return the random key of a step; it does not depend on the mesh."""
    return jax.random.fold_in(jax.random.key(seed), step)
