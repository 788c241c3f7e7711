"""From a plain description (a dict in a config) to a source."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from blip2_jax.data.dataclass_options import check_keys
from blip2_jax.data.sources.base import Source

# A source class is imported when first asked for: TFDS takes seconds to import.
SOURCES = {
    "annotations": "blip2_jax.data.sources.annotations:AnnotationsSource",
    "per_question": "blip2_jax.data.sources.per_question:PerQuestion",
    "features": "blip2_jax.data.sources.features:FeaturesSource",
    "wrong_images": "blip2_jax.data.sources.wrong_images:WrongImages",
    "shapes": "blip2_jax.data.shapes.source:ShapesSource",
    "tars": "blip2_jax.data.sources.tars:TarsSource",
    "tfds": "blip2_jax.data.sources.tfds:TfdsSource",
    "vqa": "blip2_jax.data.sources.vqa:VqaSource",
}

# Kinds under their former names, as configurations and stored runs may still have them.
ALIASES = {"each_question": "per_question", "other_pictures": "wrong_images"}


def build_source(spec: Mapping[str, Any]) -> Source:
    """Build `{"kind": name, **arguments}`; a "weight" is the mixture's, not ours.

    Raises:
      ValueError: unknown kind, or an argument that the kind lacks or wants.
      FileNotFoundError: a path that is not there.
    """
    arguments = {key: value for key, value in spec.items() if key != "weight"}
    kind = arguments.pop("kind", None)
    kind = ALIASES.get(kind, kind)
    if kind not in SOURCES:
        raise ValueError(
            f"unknown source kind {kind!r}; there are {', '.join(sorted(SOURCES))}"
        )
    module, _, name = SOURCES[kind].partition(":")
    source_class = getattr(importlib.import_module(module), name)
    parameters = inspect.signature(source_class).parameters
    required = [key for key, p in parameters.items() if p.default is p.empty]
    check_keys(arguments, parameters, required, f"source {kind!r}")
    return source_class(**arguments)
