"""Where the queries of an evaluated model look, for a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.images import evaluation_image
from blip2_jax.inference.load import load
from blip2_jax.models.presets import FeaturesConfig
from blip2_jax.reports.page import Pictures
from blip2_jax.training.checkpoints import parse_checkpoint

PIXELS = 224  # of the pictures under the maps, where the model itself reads features


def attention_of(
    settings: Mapping[str, Any], pictures: Pictures | None, count: int
) -> list[tuple[UInt8[Array, "R R 3"], Float[Array, "Q grid grid"]]]:
    """Pictures and, for each query, a map over their patches.

    Args:
      settings: of a record; its model is opened.
      pictures: of its data; without them features have nothing to be laid over.
      count: so many of the first images that can be read.

    Raises:
      ValueError, FileNotFoundError: the model or its data is not there any more, or
        its image tokens are no grid.
    """
    model = load(
        settings["model"],
        which=parse_checkpoint(str(settings["which"])),
        precision=settings["precision"] or None,
        batch_size=count,
        **settings["beside"],
    )
    vision = model.model.config.vision
    has_features = isinstance(vision, FeaturesConfig)
    size = PIXELS if isinstance(vision, FeaturesConfig) else vision.image_size
    data = EvaluationSet(settings["data"], size, settings["max_examples"])
    taken: dict[str, tuple[Array, Array]] = {}
    for place, record in enumerate(data.records):
        if len(taken) == count:
            break
        given = data.image(place)
        pixels = given
        if has_features:
            pixels = pictures.find(record.key) if pictures else None
        if given is not None and pixels is not None:
            taken[record.key] = evaluation_image(pixels, size), given
    if not taken:
        return []
    inputs = np.stack([given for _, given in taken.values()])
    maps = model.attention_maps(**{"features" if has_features else "images": inputs})
    grids = _grids(maps)
    return [(pixels, grids[row]) for row, (pixels, _) in enumerate(taken.values())]


def _grids(maps: Float[Array, "B Q P"]) -> Float[Array, "B Q grid grid"]:
    """The patches as a square; a class token before them is left out."""
    tokens = maps.shape[-1]
    for patches in (tokens, tokens - 1):
        side = round(patches**0.5)
        if side * side == patches:
            return maps[..., tokens - patches :].reshape(*maps.shape[:-1], side, side)
    raise ValueError(f"{tokens} image tokens are no square of patches")
