"""Construction of sources from their specs in configurations."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from blip2_jax.data import hub
from blip2_jax.data.dataclass_options import check_keys
from blip2_jax.data.sources.base import Source

# Source classes are imported on first use: importing TFDS takes seconds.
SOURCES = {
    "annotations": "blip2_jax.data.sources.annotations:AnnotationsSource",
    "cached_features": "blip2_jax.data.sources.cached_features:CachedFeaturesSource",
    "array_record": "blip2_jax.data.sources.array_records:ArrayRecordSource",
    "captions_by_file": "blip2_jax.data.sources.json_table:CaptionsByFileSource",
    "csv": "blip2_jax.data.sources.csv_table:CsvSource",
    "image_folder": "blip2_jax.data.sources.image_folder:ImageFolderSource",
    "json": "blip2_jax.data.sources.json_table:JsonSource",
    "parquet": "blip2_jax.data.sources.arrow_table:ParquetSource",
    "saved_dataset": "blip2_jax.data.sources.arrow_table:SavedDatasetSource",
    "text_files": "blip2_jax.data.sources.image_folder:TextFilesSource",
    "per_question": "blip2_jax.data.sources.per_question:PerQuestion",
    "features": "blip2_jax.data.sources.features:FeaturesSource",
    "wrong_images": "blip2_jax.data.sources.wrong_images:WrongImages",
    "split": "blip2_jax.data.sources.split:SplitSource",
    "shapes": "blip2_jax.data.shapes.source:ShapesSource",
    "swapped_captions": "blip2_jax.data.sources.swapped_captions:SwappedCaptions",
    "tars": "blip2_jax.data.sources.tars:TarsSource",
    "tfds": "blip2_jax.data.sources.tfds:TfdsSource",
    "url_list": "blip2_jax.data.sources.url_list:UrlListSource",
    "visual_genome": "blip2_jax.data.sources.visual_genome:VisualGenomeSource",
    "vqa": "blip2_jax.data.sources.vqa:VqaSource",
}

# Former names of kinds, which configurations and stored runs may contain.
ALIASES = {"each_question": "per_question", "other_pictures": "wrong_images"}


def build_source(spec: Mapping[str, Any]) -> Source:
    """Build a source from its spec `{"kind": name, **arguments}`.

    A "weight" in the spec is ignored; it belongs to the mixture. Arguments that begin
    with "hf://" are names of the hub; they are fetched and replaced by local paths.

    Raises:
      ValueError: the kind is unknown, or an argument is unknown or missing.
      FileNotFoundError: a path does not exist.
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
    return source_class(**{key: _local(value) for key, value in arguments.items()})


def _local(value: Any) -> Any:
    """Fetch the names of the hub in an argument; return it with local paths."""
    if isinstance(value, str) and value.startswith("hf:"):
        return str(hub.local_path(value))
    if isinstance(value, list | tuple):
        return type(value)(map(_local, value))
    return value
