"""Where a model looks for each word of its captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.images import evaluation_image
from blip2_jax.inference.embeddings import patch_grids
from blip2_jax.inference.load import load
from blip2_jax.inference.model import Blip2
from blip2_jax.inference.user_images import as_pixels
from blip2_jax.models.sizes import FeaturesConfig
from blip2_jax.reports.attention_figures import PictureMaps, telling_queries
from blip2_jax.reports.record_images import RecordImages
from blip2_jax.training.checkpoints import parse_checkpoint

PIXELS = 224  # side of the images under the maps of a model that reads features


def attention_maps_of_record(
    settings: Mapping[str, Any], images: RecordImages | None, count: int
) -> list[PictureMaps]:
    """Load the model of a record, and compute the maps of its first images.

    Args:
      settings: of the record.
      images: of its data; a model that reads features has no maps without them.
      count: number of images; those that cannot be read are skipped.

    Raises:
      FileNotFoundError: the model or its data is missing.
      ValueError: the model cannot be loaded, or its image tokens are no square grid.
    """
    model = load(
        settings["model"],
        which=parse_checkpoint(str(settings["which"])),
        precision=settings["precision"] or None,
        batch_size=1,
        **settings["beside"],
    )
    vision = model.model.config.vision
    has_features = isinstance(vision, FeaturesConfig)
    side = PIXELS if isinstance(vision, FeaturesConfig) else vision.image_size
    specs, examples = settings["data"], settings["max_examples"]
    data = EvaluationSet(specs, side, examples, max_broken_share=1.0)
    name = "features" if has_features else "images"
    maps: dict[str, PictureMaps] = {}
    for index, record in enumerate(data.records):
        if len(maps) == count:
            break
        model_input = pixels = data.image(index)
        if has_features:
            pixels = images.find(record.key) if images else None
        if model_input is None or pixels is None or record.key in maps:
            continue
        shown = evaluation_image(pixels, side)
        maps[record.key] = _maps_of(model, shown, {name: model_input[None]})
    return list(maps.values())


def picture_maps(model: Blip2, image: Any) -> PictureMaps:
    """Compute the maps of the words of a picture's caption.

    Args:
      model: reads images.
      image: a picture in any form that the model takes.

    Raises:
      ValueError: the model reads features.
    """
    vision = model.model.config.vision
    if isinstance(vision, FeaturesConfig):
        raise ValueError("the model reads features of images, not pictures")
    pixels = evaluation_image(as_pixels(image), vision.image_size)
    return _maps_of(model, pixels, {"images": pixels[None]})


def _maps_of(
    model: Blip2, pixels: UInt8[Array, "side side 3"], inputs: Mapping[str, Any]
) -> PictureMaps:
    """Return the maps of the words of a caption, or of queries if it has no words.

    Args:
      model: the model.
      pixels: the picture.
      inputs: "images" or "features", one row.
    """
    (text,) = model.caption(**inputs)
    if text.split():
        words, maps = model.word_attention(
            inputs.get("images"), text, features=inputs.get("features")
        )
        return PictureMaps(pixels, words, maps, text)
    grids = patch_grids(model.attention_maps(**inputs), model.model.config.vision)
    return telling_queries(pixels, grids[0])
