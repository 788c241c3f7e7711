"""Pictures with attention maps: one per word of a text, or of the telling queries."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.reports.heat import overlay, scale
from blip2_jax.reports.images import png_tag
from blip2_jax.reports.markup import Html, concatenate, element
from blip2_jax.reports.template import render_note

SHOWN_QUERIES = 5
_OF_WORDS = (
    "What each word of the generated text depends on in the image: gradient-weighted "
    "cross-attention of the queries. Yellow is most, grey is little."
)
_OF_QUERIES = (
    "Cross-attention of the queries whose maps are the most concentrated and differ "
    "most from each other, averaged over blocks and heads. Yellow is most, grey is "
    "little."
)


@dataclasses.dataclass(frozen=True)
class PictureMaps:
    """A picture and its attention maps.

    Attributes:
      pixels: the picture as the model saw it.
      labels: of the maps: words, or names of queries.
      maps: where each of them attends to.
      text: that the words belong to; "" for maps of queries.
    """

    pixels: UInt8[Array, "height width 3"]
    labels: Sequence[str]
    maps: Float[Array, "N grid grid"]
    text: str = ""


def telling_queries(
    pixels: UInt8[Array, "height width 3"],
    maps: Float[Array, "Q grid grid"],
    count: int = SHOWN_QUERIES,
) -> PictureMaps:
    """Select queries whose maps are concentrated and differ from each other.

    The first is the one of least entropy. Each next one has the largest product of its
    concentration and of its distance (total variation) from those selected before.

    Args:
      pixels: the picture.
      maps: of all queries.
      count: number of queries to select.
    """
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    flat = flat / np.maximum(flat.sum(axis=1, keepdims=True), 1e-12)
    logs = np.log(np.maximum(flat, 1e-12))
    concentration = np.log(flat.shape[1]) + (flat * logs).sum(axis=1)
    distance = np.abs(flat[:, None] - flat[None]).sum(axis=2) / 2
    selected = [int(concentration.argmax())]
    while len(selected) < min(count, len(maps)):
        value = concentration * distance[:, selected].min(axis=1)
        value[selected] = -np.inf
        selected.append(int(value.argmax()))
    labels = [f"query {index + 1}" for index in selected]
    return PictureMaps(pixels, labels, maps[selected])


def render_maps(
    pictures: Iterable[PictureMaps], picture_width: int = 130, map_width: int = 110
) -> Html:
    """Render a row per picture: the picture, then its maps in colour with labels."""
    pictures = list(pictures)
    explanation = _OF_WORDS if any(each.text for each in pictures) else _OF_QUERIES
    rows = [_row(each, picture_width, map_width) for each in pictures]
    return concatenate([render_note(explanation), *rows])


def _row(picture: PictureMaps, picture_width: int, map_width: int) -> Html:
    shown = png_tag(picture.pixels, picture_width, picture.text or "picture")
    figures = []
    for label, share in zip(picture.labels, scale(picture.maps), strict=True):
        alt = f"where {label!r} attends to in the picture"
        heat = png_tag(overlay(picture.pixels, share), map_width, alt)
        caption = element(
            "figcaption", label, class_="word", style=f"width:{map_width}px"
        )
        figures.append(element("figure", heat, caption))
    words = element("div", *figures, class_="words")
    return element("div", element("figure", shown), words, class_="row look")
