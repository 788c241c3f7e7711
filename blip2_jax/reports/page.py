"""A page of pictures with their captions: what a model says, and what people said."""

from __future__ import annotations

import dataclasses
import html
import random
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.sources.base import BrokenSample, Record, Source
from blip2_jax.data.sources.registry import build_source
from blip2_jax.reports.pictures import photo_tag

_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; max-width: 60em; margin: 2em auto; }
figure { display: flex; gap: 1.5em; margin: 0 0 1.5em; align-items: flex-start; }
img { border-radius: 6px; }
figcaption { flex: 1; }
.said { font-size: 1.15em; font-weight: 600; }
ul { color: #555; margin: .4em 0; padding-left: 1.2em; }
"""


@dataclasses.dataclass(frozen=True)
class Shown:
    """One picture of the page."""

    pixels: UInt8[Array, "height width 3"]
    caption: str
    references: Sequence[str]
    name: str


def caption_page(title: str, lead: str, shown: Sequence[Shown]) -> str:
    """The page as one HTML file, pictures included.

    Args:
      title: of the page.
      lead: a sentence under it.
      shown: the pictures, in order.
    """
    figures = "\n".join(_figure(each) for each in shown)
    return (
        "<!doctype html>\n<meta charset='utf-8'>\n"
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(lead)}</p>\n{figures}\n"
    )


class Pictures:
    """The pictures of evaluated data by the keys of their records."""

    def __init__(self, specs: Sequence[Mapping[str, Any]]):
        """Open the sources.

        Args:
          specs: of the evaluated data; where it holds features, the pictures are those
            of the source of the texts.

        Raises:
          FileNotFoundError, ValueError: a source is not there any more.
        """
        self._places: dict[str, tuple[Source, int]] = {}
        for spec in specs:
            source = build_source(_with_pixels(spec))
            keys = enumerate(source.keys())
            self._places |= {key: (source, index) for index, key in keys}

    def find(self, key: str) -> UInt8[Array, "height width 3"] | None:
        """RGB pixels; None where there is no such picture, or it cannot be read."""
        if key not in self._places:
            return None
        source, index = self._places[key]
        try:
            return source.load_image(index)
        except (BrokenSample, NotImplementedError):
            return None


def _with_pixels(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with the source of its texts in place of any source of features."""
    if isinstance(spec.get("texts"), Mapping):
        return _with_pixels(spec["texts"])
    return {
        name: _with_pixels(value)
        if isinstance(value, Mapping) and "kind" in value
        else value
        for name, value in spec.items()
    }


def draw_shown(
    specs: Sequence[Mapping[str, Any]],
    records: Sequence[Record],
    captions: Mapping[int, str],
    count: int,
    seed: int = 0,
) -> list[Shown]:
    """Some captioned images at random, with their pixels.

    Args:
      specs: of the evaluated data; where it holds features, the pictures are those of
        the source of the texts.
      records: of the evaluated data.
      captions: by image id.
      count: how many; fewer where fewer can be read.
      seed: of the draw.
    """
    pictures = Pictures(specs)
    drawn = [each for each in records if each.image_id in captions]
    random.Random(seed).shuffle(drawn)
    shown: list[Shown] = []
    for record in drawn:
        if len(shown) == count:
            break
        pixels = pictures.find(record.key)
        if pixels is None:
            continue
        caption = captions[record.image_id]
        shown.append(Shown(pixels, caption, record.captions, record.key))
    return shown


def _figure(shown: Shown) -> str:
    people = "".join(f"<li>{html.escape(each)}</li>" for each in shown.references)
    return (
        f"<figure>{photo_tag(shown.pixels, shown.name)}<figcaption>"
        f"<div class='said'>{html.escape(shown.caption)}</div>"
        f"<ul>{people}</ul></figcaption></figure>"
    )
