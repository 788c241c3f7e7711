"""Example pictures of the shapes world, drawn on demand: "shapes:0", "shapes:1", ..."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array
from PIL import Image

from blip2_jax.data.shapes.render import render
from blip2_jax.data.shapes.world import Scene, scene

EXAMPLE_PREFIX = "shapes:"
# The recipes were developed on earlier scenes, and none of them is trained on.
FIRST_SCENE = 20_000


def example_image(number: int = 0, size: int = 64) -> Image.Image:
    """Draw an example picture for the model `blip2_jax.load("shapes")`.

    The scenes are of the held-out split: their combinations of size, colour and shape
    occur in no training data.

    Args:
      number: of the picture, from 0.
      size: side in pixels, an even number; the model reads 64.

    Raises:
      ValueError: the number is negative.
    """
    return Image.fromarray(_draw(number, size))


def example_pixels(name: str) -> UInt8[Array, "R R 3"]:
    """Draw the picture that a name such as "shapes:3" stands for.

    Raises:
      ValueError: the name has no number.
    """
    number = name.removeprefix(EXAMPLE_PREFIX)
    if not number.isdecimal():
        raise ValueError(
            f"no example picture {name!r}; there are shapes:0, shapes:1, shapes:2, ..."
        )
    return _draw(int(number), 64)


def _draw(number: int, size: int) -> UInt8[np.ndarray, "R R 3"]:
    if number < 0:
        raise ValueError(f"number={number}: expected 0 or more")
    return render(example_scene(number), size)


def example_scene(number: int) -> Scene:
    """Return the scene of an example picture."""
    # Neighbouring scenes are near-duplicates.
    return scene("heldout", FIRST_SCENE + 2 * number)
