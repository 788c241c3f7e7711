"""AdamW or Muon, with weight decay and learning rates by parameter path.

Weight decay depends on the path and not on the rank of an array, because stacked layers
add a dimension: there a bias is a matrix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from blip2_jax.nn.trees import flatten, unflatten
from blip2_jax.training.muon import scale_by_muon
from blip2_jax.training.schedule import Schedule

NO_DECAY = r"(.*/)?(bias|scale|temperature)"
# The original decays its 0-d temperature, because it excludes 1-d arrays only.
NO_DECAY_ORIGINAL = r"(.*/)?(bias|scale)"
TOWER = "visual_encoder"
# Parameters that Muon updates: the matrices of blocks. Adam updates the others.
MUON = r"(.*/)?(blocks|layer_[0-9]+)/.*kernel"


def make_optimizer(
    options: Mapping[str, Any], schedule: Schedule, params: Mapping[str, Any]
) -> optax.GradientTransformation:
    """Build the optimizer of the trainable parameters.

    Args:
      options: `name` ("adamw", as in the paper, or "muon"), `b1`, `b2`, `eps`,
        `weight_decay`, `clip` (largest global norm; 0 disables it), `layer_decay` (see
        `layer_rates`; 1 disables it), `rate_factors` (see `path_rates`) and
        `original_decay` (the temperature decays too).
      schedule: learning rate by step.
      params: the trainable parameters; only paths and shapes are used.

    Raises:
      ValueError: a pattern of `rate_factors` matches no parameter.
    """
    pattern = NO_DECAY_ORIGINAL if options["original_decay"] else NO_DECAY
    flat = flatten(params)
    decays = unflatten({path: not re.fullmatch(pattern, path) for path in flat})
    chain = []
    if options["clip"]:
        chain.append(optax.clip_by_global_norm(options["clip"]))
    chain += [
        _direction(options),
        optax.add_decayed_weights(options["weight_decay"], mask=decays),
    ]
    if options["layer_decay"] != 1:
        chain.append(_scale_by(layer_rates(params, options["layer_decay"])))
    if options["rate_factors"]:
        chain.append(_scale_by(path_rates(params, options["rate_factors"])))
    chain.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*chain)


def _direction(options: Mapping[str, Any]) -> optax.GradientTransformation:
    """Return the transformation of gradients to updates of about unit size."""
    adam = optax.scale_by_adam(options["b1"], options["b2"], options["eps"])
    if options["name"] == "adamw":
        return adam
    return _partition_by_path(MUON, scale_by_muon(), adam)


def _partition_by_path(
    pattern: str,
    matching: optax.GradientTransformation,
    others: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Apply one transformation to the parameters that match a pattern, one to the rest.

    `optax.partition` does the same with another state: stored runs could not resume.
    """
    transformations = (matching, others)

    def split(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{}, {}]
        for path, leaf in flatten(tree).items():
            parts[0 if re.fullmatch(pattern, path) else 1][path] = leaf
        return [unflatten(part) for part in parts]

    def init(params: Any) -> tuple[Any, ...]:
        pairs = zip(transformations, split(params), strict=True)
        return tuple(each.init(part) for each, part in pairs)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params  # Muon and Adam do not read them
        triples = zip(transformations, split(updates), state, strict=True)
        results = [each.update(part, part_state) for each, part, part_state in triples]
        flat: dict[str, Any] = {}
        for part, _ in results:
            flat |= flatten(part)
        return unflatten(flat), tuple(part_state for _, part_state in results)

    return optax.GradientTransformation(init, update)


def layer_rates(params: Mapping[str, Any], decay: float) -> dict[str, Any]:
    """Compute learning rate factors for layer-wise decay of the image encoder.

    The factor is `decay` for the last block, decay**2 for the one before, and so on;
    decay**(L + 1) for patch, class and position embeddings (and CLIP's norm before the
    blocks); and 1 behind the blocks and outside the image encoder. The original
    computes these factors but does not apply them.

    Args:
      params: the trainable parameters; only paths and shapes are used.
      decay: decay per block.

    Returns:
      A tree of fp32 factors that broadcast against the parameters: [L, 1, ...] for
      stacked blocks, scalars elsewhere.
    """
    flat = flatten(params)
    blocks, norm = f"{TOWER}/blocks/", f"{TOWER}/final_norm/"
    depth = next(
        (leaf.shape[0] for path, leaf in flat.items() if path.startswith(blocks)), 0
    )
    stacked = np.float32(decay) ** np.arange(depth, 0, -1, dtype=np.float32)

    def factor(path: str, leaf: Any) -> np.ndarray:
        if path.startswith(blocks):
            return stacked.reshape((depth,) + (1,) * (len(leaf.shape) - 1))
        is_input = path.startswith(f"{TOWER}/") and not path.startswith(norm)
        return np.asarray(decay ** (depth + 1) if is_input else 1.0, np.float32)

    return unflatten({path: factor(path, leaf) for path, leaf in flat.items()})


def path_rates(
    params: Mapping[str, Any], factors: Sequence[tuple[str, float]]
) -> dict[str, Any]:
    """Compute learning rate factors for parameters that match patterns; 1 for others.

    T5 attention needs a factor. Its logits are not divided by the square root of the
    head width, so its query matrices are smaller by that factor. Adafactor, which T5
    was trained with, scales updates with the size of a matrix; updates of a fixed size
    saturate the attention.

    Args:
      params: the trainable parameters; only paths are used.
      factors: pairs (regular expression, factor). The expression must match the whole
        path. If several match, their factors are multiplied.

    Raises:
      ValueError: a pattern matches no parameter.
    """
    rates = dict.fromkeys(flatten(params), 1.0)
    for pattern, factor in factors:
        matching = [path for path in rates if re.fullmatch(pattern, path)]
        if not matching:
            raise ValueError(
                f"config.optimizer.rate_factors: {pattern!r} matches no parameter"
            )
        for path in matching:
            rates[path] *= factor
    return unflatten({path: np.float32(rate) for path, rate in rates.items()})


def _scale_by(factors: Any) -> optax.GradientTransformation:
    """Multiply every update by its factor."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(jnp.multiply, updates, factors)
    )
