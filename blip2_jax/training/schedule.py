"""The learning rate of every step.

The original holds its cosine constant within an epoch, and stops its warm-up at the
end of the first one. Here both run per step, as the paper's text says; the original's
stair is not offered, because it depends on the size of the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array | int], jax.Array]


def make_schedule(options: Mapping[str, Any], steps: int) -> Schedule:
    """Linear warm-up, then a cosine from the peak to the final rate.

    Args:
      options: `learning_rate` (the peak), `final_learning_rate`, `warmup_steps`,
        `warmup_start_learning_rate` (of step 0).
      steps: length of the run; the final rate is reached at its end.

    Returns:
      A function of the 0-based step to the fp32 rate of that step.

    Raises:
      ValueError: the warm-up is negative or not shorter than the run.
    """
    peak, final = options["learning_rate"], options["final_learning_rate"]
    start = options["warmup_start_learning_rate"]
    warmup = options["warmup_steps"]
    if not 0 <= warmup < steps:
        raise ValueError(
            f"optimizer.warmup_steps is {warmup}, must be at least 0 and less than "
            f"the {steps} steps of the run"
        )

    def rate(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rising = start + (peak - start) * step / max(warmup, 1)
        progress = jnp.clip((step - warmup) / (steps - warmup), 0.0, 1.0)
        falling = final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup, rising, falling).astype(jnp.float32)

    return rate
