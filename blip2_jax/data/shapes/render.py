"""Images of scenes, drawn from signed distances with anti-aliasing at any size."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from blip2_jax.data.shapes.world import PLACES, Scene, Thing

IMAGE_SIZE = 64
_RADIUS = {"small": 7.5 / 64, "large": 12.5 / 64}  # as shares of the image side
_SLACK = 1.5 / 64  # largest offset of a centre from the middle of its quarter
_RGB = {
    "red": (215, 35, 35),
    "green": (40, 165, 60),
    "blue": (45, 75, 220),
    "yellow": (230, 205, 30),
    "purple": (150, 50, 180),
    "orange": (245, 140, 20),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
}
_JITTER = 25.0  # levels (of 255) by which colours vary between scenes


def render(scene: Scene, size: int = IMAGE_SIZE) -> UInt8[np.ndarray, "R R 3"]:
    """Draw a scene on grey; colours and background vary slightly between scenes.

    Args:
      scene: the scene.
      size: side of the image in pixels, an even number.
    """
    rng = np.random.default_rng(scene.look)
    ground = 128.0 + rng.uniform(-15, 15) + rng.uniform(-5, 5, 3)
    jitter = rng.uniform(-_JITTER, _JITTER, (len(PLACES), 3))
    picture = np.broadcast_to(ground, (size, size, 3)).astype(np.float32)
    half = size // 2
    for thing in scene.things:
        rows = slice(thing.row * half, (thing.row + 1) * half)
        columns = slice(thing.column * half, (thing.column + 1) * half)
        alpha = _coverage(thing, half)[..., None]
        color = np.asarray(_RGB[thing.color]) + jitter[PLACES.index(thing.place)]
        quarter = picture[rows, columns]
        picture[rows, columns] = quarter + alpha * (color.astype(np.float32) - quarter)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _coverage(thing: Thing, half: int) -> Float[np.ndarray, "half half"]:
    """Return the share of each pixel of its quarter that a thing covers."""
    radius = _RADIUS[thing.size]
    axis = (np.arange(half, dtype=np.float32) + 0.5) / (2 * half) - 0.25
    x = (axis[None, :] - _SLACK * thing.dx) / radius
    y = (axis[:, None] - _SLACK * thing.dy) / radius
    distance = _DISTANCES[thing.shape](x, y) * radius * 2 * half
    return np.clip(0.5 - distance, 0.0, 1.0)


def _star(x: np.ndarray, y: np.ndarray, points: int, inner: float) -> np.ndarray:
    """Signed distance to a star (negative inside): corners at 1 and, between, `inner`.

    Folded into half of one of its sectors, where it has a single edge. A regular
    polygon is a star whose inner corners are the middles of its sides.
    """
    half = np.pi / points
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    radius = np.hypot(x, y)
    px, py = radius * np.cos(angle) - 1, radius * np.sin(angle)  # from the corner
    ex, ey = inner * np.cos(half) - 1, inner * np.sin(half)  # the edge
    along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
    gap = np.hypot(px - ex * along, py - ey * along)
    return np.where(ex * py < ey * px, gap, -gap)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 1.1 * _star(x / 1.1, (y - 0.2) / 1.1, 3, 0.5)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y, arm = np.abs(x), np.abs(y), 0.32
    bars = [np.maximum(x - 1, y - arm), np.maximum(x - arm, y - 1)]
    return np.minimum(*bars)


_DISTANCES = {
    "circle": lambda x, y: np.hypot(x, y) - 0.95,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.85,
    "triangle": _triangle,
    "star": lambda x, y: 1.08 * _star(x / 1.08, y / 1.08, 5, 0.42),
    "cross": _cross,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.25,
}
