"""AdamW whose weight decay and rates are chosen by parameter path.

Which parameters decay is a matter of names, never of rank: the towers keep their
layers stacked, so that a bias is a matrix there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from blip2_jax.training.partition import flatten, unflatten
from blip2_jax.training.schedule import Schedule

NO_DECAY = r"(.*/)?(bias|scale|temperature)"
# The original decays its 0-d temperature, because it skips 1-d arrays only.
NO_DECAY_ORIGINAL = r"(.*/)?(bias|scale)"
TOWER = "visual_encoder"


def make_optimizer(
    options: Mapping[str, Any], schedule: Schedule, params: Mapping[str, Any]
) -> optax.GradientTransformation:
    """AdamW over the trainable parameters.

    Args:
      options: `b1`, `b2`, `eps`, `weight_decay`, `clip` (global norm; 0: none),
        `layer_decay` (see `layer_rates`; 1: none), `accumulate` (batches per update),
        `original_decay` (the temperature decays too).
      schedule: rate of each step, a step being one batch.
      params: the trainable tree; only paths and shapes are read.
    """
    pattern = NO_DECAY_ORIGINAL if options["original_decay"] else NO_DECAY
    flat = flatten(params)
    decays = unflatten({path: not re.fullmatch(pattern, path) for path in flat})
    chain = []
    if options["clip"]:
        chain.append(optax.clip_by_global_norm(options["clip"]))
    chain += [
        optax.scale_by_adam(options["b1"], options["b2"], options["eps"]),
        optax.add_decayed_weights(options["weight_decay"], mask=decays),
    ]
    if options["layer_decay"] != 1:
        chain.append(_scale_by(layer_rates(params, options["layer_decay"])))
    accumulate = options["accumulate"]
    chain.append(optax.scale_by_learning_rate(lambda n: schedule(n * accumulate)))
    optimizer = optax.chain(*chain)
    if accumulate > 1:
        multi = optax.MultiSteps(optimizer, every_k_schedule=accumulate)
        return optax.GradientTransformation(multi.init, multi.update)
    return optimizer


def layer_rates(params: Mapping[str, Any], decay: float) -> dict[str, Any]:
    """Rate factors of an image encoder that is trained with layer-wise decay.

    The top block learns at `decay` times the rate of what stands above the tower, the
    block below at decay**2, and so on; the patch, class and position embeddings (and
    CLIP's norm before the blocks) at decay**(L + 1). The original computes these
    factors and then applies none of them.

    Returns:
      A tree of fp32 factors that broadcast against the parameters: [L, 1, ...] for
      stacked blocks, scalars elsewhere.
    """
    flat = flatten(params)
    blocks = f"{TOWER}/blocks/"
    depth = next((leaf.shape[0] for path, leaf in flat.items()
                  if path.startswith(blocks)), 0)
    stacked = np.float32(decay) ** np.arange(depth, 0, -1, dtype=np.float32)

    def factor(path: str, leaf: Any) -> np.ndarray:
        if path.startswith(blocks):
            return stacked.reshape((depth,) + (1,) * (len(leaf.shape) - 1))
        in_tower = path.startswith(f"{TOWER}/")
        return np.asarray(decay ** (depth + 1) if in_tower else 1.0, np.float32)

    return unflatten({path: factor(path, leaf) for path, leaf in flat.items()})


def _scale_by(factors: Any) -> optax.GradientTransformation:
    """Multiply every update by its factor."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(jnp.multiply, updates, factors)
    )
