"""AdamW, or Muon, whose weight decay and rates are chosen by parameter path.

Which parameters decay is a matter of names, never of rank: the towers keep their
layers stacked, so that a bias is a matrix there.
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
# The original decays its 0-d temperature, because it skips 1-d arrays only.
NO_DECAY_ORIGINAL = r"(.*/)?(bias|scale)"
TOWER = "visual_encoder"
# What Muon orthogonalises: the matrices inside of blocks.
MUON = r"(.*/)?(blocks|layer_[0-9]+)/.*kernel"


def make_optimizer(
    options: Mapping[str, Any], schedule: Schedule, params: Mapping[str, Any]
) -> optax.GradientTransformation:
    """The optimizer of the trainable parameters.

    Args:
      options: `name`, "adamw" (the paper's) or "muon", `b1`, `b2`, `eps`,
        `weight_decay`, `clip` (global norm; 0: none), `layer_decay` (see
        `layer_rates`; 1: none), `rate_factors` (see `path_rates`), `original_decay`
        (the temperature decays too).
      schedule: rate of each step.
      params: the trainable tree; only paths and shapes are read.

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
    """From gradients to updates of about unit size."""
    adam = optax.scale_by_adam(options["b1"], options["b2"], options["eps"])
    return adam if options["name"] == "adamw" else _by_path(MUON, scale_by_muon(), adam)


def _by_path(
    pattern: str, inside: optax.GradientTransformation, rest: Any
) -> optax.GradientTransformation:
    """`inside` for parameters whose path matches, `rest` for the others."""

    def parts(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
        chosen: list[dict[str, Any]] = [{}, {}]
        for path, leaf in flatten(tree).items():
            chosen[0 if re.fullmatch(pattern, path) else 1][path] = leaf
        return [unflatten(part) for part in chosen]

    def init(params: Any) -> tuple[Any, ...]:
        pairs = zip((inside, rest), parts(params), strict=True)
        return tuple(each.init(part) for each, part in pairs)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params  # neither looks at them
        triples = zip((inside, rest), parts(updates), state, strict=True)
        done = [each.update(part, old) for each, part, old in triples]
        merged: dict[str, Any] = {}
        for new, _ in done:
            merged |= flatten(new)
        return unflatten(merged), tuple(new_state for _, new_state in done)

    return optax.GradientTransformation(init, update)


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
    depth = next(
        (leaf.shape[0] for path, leaf in flat.items() if path.startswith(blocks)), 0
    )
    stacked = np.float32(decay) ** np.arange(depth, 0, -1, dtype=np.float32)

    def factor(path: str, leaf: Any) -> np.ndarray:
        if path.startswith(blocks):
            return stacked.reshape((depth,) + (1,) * (len(leaf.shape) - 1))
        in_tower = path.startswith(f"{TOWER}/")
        return np.asarray(decay ** (depth + 1) if in_tower else 1.0, np.float32)

    return unflatten({path: factor(path, leaf) for path, leaf in flat.items()})


def path_rates(
    params: Mapping[str, Any], factors: Sequence[tuple[str, float]]
) -> dict[str, Any]:
    """Rate factors of parameters whose whole path matches a pattern; 1 elsewhere.

    T5's attention, whose logits are not divided by the root of the head width, needs
    one: its queries are smaller by that factor, and Adafactor, which T5 was trained
    with, changes a matrix in proportion to its size. Updates of a fixed size saturate
    the attention.

    Args:
      factors: pairs (regular expression, factor); of several that match, all count.

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
