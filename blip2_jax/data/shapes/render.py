"""Pictures of scenes: signed distances, anti-aliased, at any resolution."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from blip2_jax.data.shapes.world import PLACES, Scene, Thing

IMAGE_SIZE = 64
_RADIUS = {"small": 7.5 / 64, "large": 12.5 / 64}  # shares of the picture's side
_SLACK = 1.5 / 64  # how far a centre may leave the middle of its quarter
_RGB = {
    "red": (215, 35, 35), "green": (40, 165, 60), "blue": (45, 75, 220),
    "yellow": (230, 205, 30), "purple": (150, 50, 180), "orange": (245, 140, 20),
    "black": (20, 20, 20), "white": (245, 245, 245),
}  # fmt: skip
_JITTER = 25.0  # levels of 255 by which a colour varies from scene to scene


def render(scene: Scene, size: int = IMAGE_SIZE) -> UInt8[np.ndarray, "S S 3"]:
    """Draw a scene on a grey ground whose tone, like every colour, varies a little.

    `size` (even) is the picture's side in pixels.
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


def _coverage(thing: Thing, half: int) -> Float[np.ndarray, "H H"]:
    """The share of each pixel of its quarter that the thing covers."""
    radius = _RADIUS[thing.size]
    axis = (np.arange(half, dtype=np.float32) + 0.5) / (2 * half) - 0.25
    x = (axis[None, :] - _SLACK * thing.dx) / radius
    y = (axis[:, None] - _SLACK * thing.dy) / radius
    distance = _DISTANCES[thing.shape](x, y) * radius * 2 * half
    return np.clip(0.5 - distance, 0.0, 1.0)


def _polygon(corners: Float[np.ndarray, "N 2"]):
    """Signed distance to a simple polygon (negative inside)."""

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = np.broadcast_arrays(x, y)
        squared = np.full(x.shape, np.inf, np.float32)
        inside = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0), strict=True):
            ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            gap = (px - ex * along) ** 2 + (py - ey * along) ** 2
            squared = np.minimum(squared, gap)
            if ay != by:
                crosses = (ay > y) != (by > y)
                inside ^= crosses & (px < ex * py / ey)
        return np.where(inside, -1, 1) * np.sqrt(squared)

    return distance


def _regular(points: int, inner: float | None = None) -> Float[np.ndarray, "N 2"]:
    """Corners of a regular polygon, or of a star with the given inner radius."""
    count = points if inner is None else 2 * points
    angle = 2 * np.pi * np.arange(count) / count - np.pi / 2
    radius = np.ones(count)
    if inner is not None:
        radius[1::2] = inner
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y, arm = np.abs(x), np.abs(y), 0.32
    bars = [np.maximum(x - 1, y - arm), np.maximum(x - arm, y - 1)]
    return np.minimum(*bars)


_DISTANCES = {
    "circle": lambda x, y: np.hypot(x, y) - 0.95,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.85,
    "triangle": _polygon(_regular(3) * 1.1 + np.array([0.0, 0.2])),
    "star": _polygon(_regular(5, inner=0.42) * 1.08),
    "cross": _cross,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.25,
}
