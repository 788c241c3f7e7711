"""A page of pictures with their captions: what a model says, and what people said."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import random
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray as Array
from PIL import Image

from blip2_jax.data.sources.base import BrokenSample, Record, Source
from blip2_jax.data.sources.registry import build_source

_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; max-width: 60em; margin: 2em auto; }
figure { display: flex; gap: 1.5em; margin: 0 0 1.5em; align-items: flex-start; }
img { width: 224px; border-radius: 6px; }
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
    pictures: dict[str, tuple[Source, int]] = {}
    for spec in specs:
        of_texts = spec.get("texts")
        source = build_source(of_texts if isinstance(of_texts, Mapping) else spec)
        pictures |= {key: (source, index) for index, key in enumerate(source.keys())}
    drawn = [each for each in records if each.image_id in captions]
    random.Random(seed).shuffle(drawn)
    shown: list[Shown] = []
    for record in drawn:
        if len(shown) == count:
            break
        if record.key not in pictures:
            continue
        source, index = pictures[record.key]
        try:
            pixels = source.load_image(index)
        except (BrokenSample, NotImplementedError):
            continue
        caption = captions[record.image_id]
        shown.append(Shown(pixels, caption, record.captions, record.key))
    return shown


def _figure(shown: Shown) -> str:
    file = io.BytesIO()
    Image.fromarray(shown.pixels).save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    people = "".join(f"<li>{html.escape(each)}</li>" for each in shown.references)
    return (
        f"<figure><img alt='{html.escape(shown.name)}' "
        f"src='data:image/jpeg;base64,{data}'><figcaption>"
        f"<div class='said'>{html.escape(shown.caption)}</div>"
        f"<ul>{people}</ul></figcaption></figure>"
    )
