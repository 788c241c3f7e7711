"""The learning rate schedule: linear warm-up, then cosine decay, per step.

The paper describes it per step. The original's code holds the cosine constant within an
epoch and ends the warm-up with the first epoch; that is not offered, because it depends
on the size of the data set. `optax.warmup_cosine_decay_schedule` is the same schedule
with other rounding in the last bit: stored runs would not resume bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array | int], jax.Array]


def make_schedule(options: Mapping[str, Any], steps: int) -> Schedule:
    """Build a schedule of linear warm-up and cosine decay.

    Args:
      options: `learning_rate` (the peak), `final_learning_rate`, `warmup_steps` and
        `warmup_start_learning_rate` (of step 0).
      steps: number of steps of the run; the last one has the final rate.

    Returns:
      A function from the 0-based step to its fp32 learning rate.

    Raises:
      ValueError: `warmup_steps` is negative or not less than `steps`.
    """
    peak, final = options["learning_rate"], options["final_learning_rate"]
    start = options["warmup_start_learning_rate"]
    warmup = options["warmup_steps"]
    if not 0 <= warmup < steps:
        raise ValueError(
            f"config.optimizer.warmup_steps is {warmup}; it must be at least 0 and "
            f"less than the {steps} steps of the run"
        )

    def rate(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warmup_rate = start + (peak - start) * step / max(warmup, 1)
        progress = jnp.clip((step - warmup) / (steps - warmup), 0.0, 1.0)
        decay = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        cosine_rate = final + (peak - final) * decay
        return jnp.where(step < warmup, warmup_rate, cosine_rate).astype(jnp.float32)

    return rate
