"""The text that `repr` shows for a loaded model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from blip2_jax.models.blip2 import Blip2Base
from blip2_jax.models.presets import PARTS, Blip2Config

# Names of the parts, and the prefixes of their parameters. All others belong to the
# Q-Former with its heads and projections.
_TOWERS = {
    "image encoder": ("vision", "visual_encoder"),
    "language model": ("language_model", "language_model"),
}
_NAMES = {"vit": "ViT"}
# Sizes that are shown, if the part has them.
_SIZES = {
    "image_size": "{} px",
    "num_tokens": "{} tokens",
    "num_queries": "{} queries",
    "width": "width {}",
    "depth": "{} blocks",
    "decoder_depth": "{} decoder blocks",
    "vocab_size": "{} words",
}


def describe_model(name: str, origin: str, model: Blip2Base, params: PyTree) -> str:
    """Describe a model in a few lines: origin, parts, precision and devices.

    Args:
      name: name of the model's class.
      origin: where the model comes from; "" if unknown.
      model: the Flax module.
      params: its parameters.
    """
    total = _count(params)
    leaves = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    devices = {device for leaf in leaves for device in leaf.sharding.device_set}
    lines = [
        f"{name}: stage {1 if model.config.language_model is None else 2}, "
        f"{_millions(total)} parameters" + (f", from {origin}" if origin else ""),
        *_part_lines(model.config, params),
        f"  precision: {jnp.dtype(model.dtype).name}",
        f"  devices: {_device_names(devices)}",
    ]
    return "\n".join(lines)


def _part_lines(config: Blip2Config, params: PyTree) -> list[str]:
    """Describe each part of a model in one line."""
    own = dict(params)
    lines = []
    for title, (field, prefix) in _TOWERS.items():
        sizes = getattr(config, field)
        if sizes is not None:
            lines.append(f"  {title}: {_part(sizes, own.pop(prefix, {}))}")
    if config.projector is None:
        lines.insert(1, f"  Q-Former: {_part(config.qformer, own)}")
    else:
        lines.insert(1, f"  projector: {_part(config.projector, own)}")
    return lines


def _part(sizes: object, params: PyTree) -> str:
    """Describe a part by its sizes and the number of its parameters."""
    fields = {field.name for field in dataclasses.fields(sizes)}  # type: ignore[arg-type]
    values = {name: getattr(sizes, name) for name in _SIZES if name in fields}
    parts = [_SIZES[name].format(value) for name, value in values.items() if value]
    count = _count(params)
    parts += [f"{_millions(count)} parameters"] if count else []
    kind = next(name for name, part in PARTS.items() if isinstance(sizes, part))
    name = getattr(sizes, "title", kind)  # of a language model
    title = [] if kind == "qformer" else [_NAMES.get(kind, name)]
    return ", ".join([*title, *parts])


def _count(params: PyTree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _millions(count: int) -> str:
    """Format a number of parameters in millions with three digits or more."""
    millions = count / 1e6
    digits = 0 if millions >= 100 else 1 if millions >= 10 else 2
    return f"{millions:,.{digits}f} M"


def _device_names(devices: set[jax.Device]) -> str:
    """List devices, or count them if there are many."""
    names = sorted(f"{device.platform}:{device.id}" for device in devices)
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    if len(names) > 4:
        return f"{len(names)} ({kinds})"
    return f"{', '.join(names)} ({kinds})" if names else "none"
