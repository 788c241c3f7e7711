"""Pictures of a page as text: data-URL images, attention overlays, line charts."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array
from PIL import Image

_COLORS = ("#2563eb", "#dc2626", "#16a34a", "#9333ea")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 340, 200, 40, 24


def image_tag(pixels: UInt8[Array, "height width 3"], width: int) -> str:
    """An <img> that holds its own PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img width={width} height={width} src="data:image/png;base64,{data}">'


def photo_tag(
    pixels: UInt8[Array, "height width 3"], name: str, width: int = 224
) -> str:
    """An <img> that holds its own JPEG, no larger than it needs to be."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((2 * width, 2 * width))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    source = f"data:image/jpeg;base64,{data}"
    return f'<img alt="{html.escape(name)}" width={width} src="{source}">'


def overlay(
    pixels: UInt8[Array, "R R 3"], weights: Float[Array, "grid grid"]
) -> UInt8[Array, "R R 3"]:
    """A picture, bright where the weights are high, dark where they are low."""
    size = pixels.shape[0]
    share = weights / max(float(weights.max()), 1e-9)
    small = Image.fromarray((255 * share).astype(np.uint8))
    light = np.asarray(small.resize((size, size), Image.Resampling.BILINEAR)) / 255.0
    return (pixels * (0.15 + 0.85 * light[..., None])).astype(np.uint8)


def chart(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """An SVG line chart; both axes begin at zero, names stand where no line ends."""
    points = [point for line in series.values() for point in line]
    right = max([x for x, _ in points], default=1.0)
    top = 1.05 * max([y for _, y in points], default=1.0)
    ground = _HEIGHT - _BOTTOM
    ends = [line[-1][1] for line in series.values()]
    is_high = 2 * min(ends, default=0.0) > top
    first = ground - 15 * len(ends) + 7 if is_high else 14  # of the names

    def place(x: float, y: float) -> str:
        across = _LEFT + x / right * (_WIDTH - _LEFT - 8)
        return f"{across:.1f},{ground * (1 - y / top):.1f}"

    parts = [
        f'<polyline fill="none" stroke="{color}" stroke-width="1.6" points="'
        + " ".join(place(x, y) for x, y in line)
        + f'"/><text x="{_WIDTH - 8}" y="{first + 15 * number}" fill="{color}" '
        f'text-anchor="end">{html.escape(name)} {line[-1][1]:.2f}</text>'
        for number, (color, (name, line)) in enumerate(
            zip(_COLORS, series.items(), strict=False)
        )
    ]
    axes = (
        f'<path d="M{_LEFT} 0V{ground}H{_WIDTH - 8}" stroke="#99a" fill="none"/>'
        f'<text x="{_LEFT - 4}" y="12" text-anchor="end">{top:.1f}</text>'
        f'<text x="{_LEFT - 4}" y="{ground}" text-anchor="end">0</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 8}" text-anchor="end">'
        f"{right:.0f} steps</text>"
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}" font-weight="bold">'
        f"{html.escape(title)}</text>"
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%" '
        f'font-family="system-ui" font-size="11">{axes}{"".join(parts)}</svg>'
    )
