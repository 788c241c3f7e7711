"""A page of images with a model's captions and people's."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.evaluation.examples import Example
from blip2_jax.reports.images import jpeg_tag
from blip2_jax.reports.markup import Html, element
from blip2_jax.reports.record_images import RecordImages
from blip2_jax.reports.template import render_list, render_note, render_page


@dataclasses.dataclass(frozen=True)
class CaptionedImage:
    """An image, the model's caption, people's captions, and the image's name."""

    pixels: UInt8[Array, "height width 3"]
    caption: str
    references: Sequence[str]
    name: str


def caption_page(title: str, lead: str, captioned: Sequence[CaptionedImage]) -> str:
    """Render the page as one HTML file with the images inside.

    Args:
      title: of the page.
      lead: a sentence below the title.
      captioned: the images, in order.
    """
    return render_page(title, [render_note(lead), *map(_card, captioned)])


def draw_captioned(
    specs: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    count: int,
    seed: int = 0,
) -> list[CaptionedImage]:
    """Draw captioned images at random.

    Args:
      specs: of the evaluated data.
      examples: of a captioning evaluation.
      count: number of images; images that cannot be read are skipped.
      seed: of the draw.
    """
    images = RecordImages(specs)
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    captioned: list[CaptionedImage] = []
    for example in shuffled:
        if len(captioned) == count:
            break
        pixels = images.find(example["key"])
        if pixels is not None:
            captioned.append(
                CaptionedImage(
                    pixels, example["said"], example["references"], example["key"]
                )
            )
    return captioned


def _card(image: CaptionedImage) -> Html:
    return element(
        "div",
        element("figure", jpeg_tag(image.pixels, _alt(image))),
        element(
            "div",
            element("p", image.caption, class_="said"),
            render_list(image.references),
        ),
        class_="card",
    )


def _alt(image: CaptionedImage) -> str:
    """Describe an image by its name and the first caption of a person."""
    return ": ".join([image.name, *image.references[:1]])
