"""This package's own folder of weights: what `convert --to blip2_jax` writes.

    model.json            sizes, tokenizers, prompts
    manifest.json         for every array its origin, digest, shape and dtype there
    model*.safetensors    arrays by our paths
    qformer_tokenizer/, language_tokenizer/

Digests are of the origin's values, before any cast, and are computed once: a reader
trusts them, so that a run which names this folder starts without hashing gigabytes.
"""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from blip2_jax.convert.arrays import digest
from blip2_jax.convert.files.atomic_output import (
    ShardWriter,
    cast,
    progress,
    whole,
    write_json,
)
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, Index, SourceError
from blip2_jax.convert.files.lazy_arrays import LazyArrays
from blip2_jax.convert.model_source import ModelSource
from blip2_jax.models import presets

FORMAT = 1
MODEL, MANIFEST = "model.json", "manifest.json"
Manifest = dict[str, dict[str, Any]]
TOKENIZERS = ("qformer_tokenizer", "language_tokenizer")


class FolderArrays(LazyArrays):
    """The arrays of a folder, with the digests that were taken at conversion."""

    def __init__(self, path: pathlib.Path) -> None:
        self._source = CheckpointFiles(path)
        super().__init__(self._source)
        self.manifest: Manifest = json.loads((path / MANIFEST).read_text())
        if self.manifest.keys() != self._source.keys():
            differ = sorted(self.manifest.keys() ^ self._source.keys())
            raise SourceError(f"{path}: manifest and weights differ in {differ[0]}")

    def __getitem__(self, path: str) -> np.ndarray:
        return self._source[path]

    def part(self, path: str, index: Index) -> np.ndarray:
        """Part of an array; nothing else is read."""
        return self._source.part(path, index)

    def shape(self, path: str) -> tuple[int, ...]:
        """Shape of an array, without reading it."""
        return self._source.shape(path)

    def origin(self, path: str) -> dict[str, Any]:
        """Source, digest, shape and dtype that an array had before conversion."""
        return self.manifest[path]


def reader(
    arrays: Mapping[str, np.ndarray], path: str
) -> Callable[[Index], np.ndarray]:
    """Reads parts of an array: of a folder these alone, of others from all of it."""
    if isinstance(arrays, FolderArrays):
        return functools.partial(arrays.part, path)
    return arrays[path].__getitem__


def is_folder(path: pathlib.Path) -> bool:
    """Whether a conversion wrote this folder."""
    return (path / MODEL).is_file()


def write_folder(
    model: ModelSource, output: pathlib.Path, dtype: str | None = None
) -> None:
    """Write a model; the folder appears when it is complete.

    Args:
      dtype: of all floating arrays; None keeps each one's own.

    Raises:
      FileExistsError: the output is there already.
    """
    with whole(output) as place:
        place.mkdir(parents=True)
        manifest = write_arrays(model.arrays, place, dtype)
        write_json(place / MANIFEST, manifest)
        described = describe(model)
        for role in TOKENIZERS:
            described[role] = _copy_tokenizer(described[role], place / role)
        write_json(place / MODEL, described)


def write_arrays(
    arrays: Mapping[str, np.ndarray], place: pathlib.Path, dtype: str | None
) -> Manifest:
    """Write arrays one by one; returns what they were."""
    writer, manifest = ShardWriter(place), Manifest()
    for path in progress(list(arrays), "converting"):
        array = arrays[path]
        manifest[path] = entry(arrays, path, array)
        writer.add(path, cast(array, dtype))
    writer.close()
    return manifest


def entry(
    arrays: Mapping[str, np.ndarray], path: str, array: np.ndarray
) -> dict[str, Any]:
    """Where an array comes from and what it was there; hashed unless that is known."""
    origin = getattr(arrays, "origin", lambda path: "memory")(path)
    if isinstance(origin, Mapping):
        return dict(origin)
    return {
        "source": origin,
        "digest": digest(array),
        "shape": list(array.shape),
        "dtype": array.dtype.name,
    }


def describe(model: ModelSource) -> dict[str, Any]:
    """What `model.json` says."""
    return {
        "format": FORMAT,
        "origin": model.origin,
        "sizes": presets.to_plain(model.config),
        "qformer_tokenizer": model.qformer_tokenizer,
        "language_tokenizer": model.language_tokenizer,
        "question_prompt": model.question_prompt,
        "question_in_qformer": model.question_in_qformer,
        "precision": model.precision,
        "absent": list(model.absent),
        "elsewhere": list(model.elsewhere),
    }


def read_folder(path: pathlib.Path) -> ModelSource:
    """Open what `write_folder` wrote.

    Raises:
      SourceError: the folder is damaged, or of a later format.
    """
    try:
        told = json.loads((path / MODEL).read_text())
        if told.pop("format") != FORMAT:
            raise SourceError(f"{path} was written by a later version of this package")
        config = presets.from_plain(told.pop("sizes"))
        for role in TOKENIZERS:
            if told[role] and not told[role].startswith("shapes:"):
                told[role] = str(path / told[role])
        for name in ("absent", "elsewhere"):
            told[name] = tuple(told[name])
        return ModelSource(config, FolderArrays(path), **told)
    except (json.JSONDecodeError, KeyError, TypeError, FileNotFoundError) as error:
        raise SourceError(f"{path} is a damaged folder of weights: {error}") from error


def _copy_tokenizer(spec: str, target: pathlib.Path) -> str:
    """Copies a directory's files (not its weights); returns what to record."""
    if not spec or spec.startswith("shapes:"):
        return spec
    target.mkdir()
    for file in sorted(pathlib.Path(spec).iterdir()):
        if file.is_file() and file.name in TOKENIZER_FILES:
            shutil.copy(file, target / file.name)
    return target.name


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
)
