"""This package's own folder of weights, as `convert --to blip2_jax` writes it.

    model.json            sizes, tokenizers, prompts
    manifest.json         origin, digest, shape and dtype of every source array
    model*.safetensors    parameters by path
    qformer_tokenizer/, language_tokenizer/

A digest is that of the values before any cast; `stored` is that of the values in the
folder if it differs. Both are computed at conversion, and the values are compared with
them once for each state of the files (`files.digests`).
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from blip2_jax.convert.array_check import compare_with_model
from blip2_jax.convert.files.checkpoint_files import (
    CheckpointFiles,
    Index,
    LazyArrays,
    SourceError,
)
from blip2_jax.convert.files.digests import digest
from blip2_jax.convert.files.json_files import read_json_object
from blip2_jax.convert.files.output import (
    ShardWriter,
    atomic_output,
    cast,
    progress,
    write_json,
)
from blip2_jax.convert.model_source import TEXT_BRANCH, ModelSource, expected_shapes
from blip2_jax.data.hub import TOKENIZER_FILES
from blip2_jax.data.text.tokenizer_files import (
    LAVIS_PREFIX,
    save_tokenizer,
    split_spec,
    tokenizer_directory,
)
from blip2_jax.models import presets

FORMAT = 1
MODEL, MANIFEST = "model.json", "manifest.json"
TOKENIZERS = ("qformer_tokenizer", "language_tokenizer")
# For each path "source", "digest", "shape" and "dtype" of the array in its source, and
# "stored", the digest of the array in the folder, with "stored_dtype", if it was cast.
_STORED = ("stored", "stored_dtype")
Manifest = dict[str, dict[str, Any]]


class FolderArrays(LazyArrays):
    """The parameters of a folder, with the digests that were taken at conversion.

    Attributes:
      manifest: content of `manifest.json`.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Open the weights and the manifest.

        Raises:
          SourceError: they do not hold the same paths.
        """
        self._source = CheckpointFiles(path)
        super().__init__(self._source)
        self.manifest: Manifest = read_json_object(path / MANIFEST)
        if self.manifest.keys() != self._source.keys():
            differing = sorted(self.manifest.keys() ^ self._source.keys())
            raise SourceError(
                f"{path}: {differing[0]} is not in both the manifest and the weights"
            )

    def __getitem__(self, path: str) -> np.ndarray:
        return self._source[path]

    def part(self, path: str, index: Index) -> np.ndarray:
        """Read a part of a parameter and nothing else."""
        return self._source.part(path, index)

    def shape(self, path: str) -> tuple[int, ...]:
        """Return the shape of a parameter without reading it."""
        return self._source.shape(path)

    def check(self, model: ModelSource) -> None:
        """Compare the parameters with those of the model.

        Raises:
          SourceError: they differ; the message names them.
        """
        actual = {
            path: jax.ShapeDtypeStruct(self.shape(path), self._source.dtype(path))
            for path in self
        }
        expected = expected_shapes(model.config, model.question_in_qformer)
        compare_with_model(actual, expected, absent=model.absent, carried=TEXT_BRANCH)

    def origin(self, path: str) -> dict[str, Any]:
        """Return the manifest's entry of a parameter, with the digest of its values.

        Folders of earlier versions have no digest of values that were cast; it is added
        as "stored".

        Raises:
          SourceError: the values are not those that were written.
        """
        entry, stored = self.manifest[path], self._source.digest(path)
        expected = entry.get("stored")
        if expected is None and self._source.dtype(path).name == entry["dtype"]:
            expected = entry["digest"]
        if expected not in (None, stored):
            raise SourceError(
                f"{self._source.path}: the values of {path} are not those that the "
                "conversion wrote: convert the model again into another folder"
            )
        return (
            entry
            if stored == entry["digest"]
            else {
                **entry,
                "stored": stored,
                "stored_dtype": self._source.dtype(path).name,
            }
        )


def is_native_folder(path: pathlib.Path) -> bool:
    """Return True if a conversion wrote this folder."""
    return (path / MODEL).is_file()


def read_folder(path: pathlib.Path) -> ModelSource:
    """Open a folder that `write_folder` wrote.

    Raises:
      SourceError: the folder is damaged or was written by a later version.
    """
    try:
        fields = read_json_object(path / MODEL)
        if fields.pop("format") != FORMAT:
            raise SourceError(f"{path} was written by a later version of this package")
        config = presets.from_plain(fields.pop("sizes"))
        for role in TOKENIZERS:
            if fields[role] and not fields[role].startswith("shapes:"):
                fields[role] = str(path / fields[role])
        for name in ("absent", "elsewhere"):
            fields[name] = tuple(fields[name])
        arrays = FolderArrays(path)
        model = ModelSource(config, arrays, **fields)
        arrays.check(model)
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise SourceError(f"{path} is a damaged folder of weights: {error}") from error
    return model


def write_folder(
    model: ModelSource, output: pathlib.Path, dtype: str | None = None
) -> None:
    """Write a model as a folder, which appears only when it is complete.

    Args:
      model: the model.
      output: path of the folder.
      dtype: of all floating-point arrays; None keeps each one's own.

    Raises:
      FileExistsError: the output exists.
    """
    with atomic_output(output) as folder:
        folder.mkdir(parents=True)
        manifest = write_arrays(model.arrays, folder, dtype)
        write_json(folder / MANIFEST, manifest)
        fields = describe(model)
        for role in TOKENIZERS:
            fields[role] = _copy_tokenizer(
                fields[role], folder / role, role == "language_tokenizer"
            )
        write_json(folder / MODEL, fields)


def write_arrays(
    arrays: Mapping[str, np.ndarray], folder: pathlib.Path, dtype: str | None
) -> Manifest:
    """Write arrays one by one and return their manifest."""
    writer, manifest = ShardWriter(folder), Manifest()
    for path in progress(list(arrays), "converting"):
        array = arrays[path]
        stored = cast(array, dtype)
        manifest[path] = _stored_entry(manifest_entry(arrays, path, array), stored)
        writer.add(path, stored)
    writer.close()
    return manifest


def _stored_entry(entry: dict[str, Any], stored: np.ndarray) -> dict[str, Any]:
    """Return an entry with the digest of the stored values if it is another one."""
    entry = {key: value for key, value in entry.items() if key not in _STORED}
    stored_digest = digest(stored)
    return (
        entry
        if stored_digest == entry["digest"]
        else entry | {"stored": stored_digest, "stored_dtype": stored.dtype.name}
    )


def manifest_entry(
    arrays: Mapping[str, np.ndarray], path: str, array: np.ndarray
) -> dict[str, Any]:
    """Return the manifest's entry of an array.

    Args:
      arrays: the mapping that provided the array. If its method `origin` returns an
        entry, that is the result; if it returns the name of a file, or there is no such
        method, the array is hashed.
      path: of the parameter.
      array: its value.
    """
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
    """Return the content of `model.json`."""
    # Earlier versions read the folders of all other models.
    more: dict[str, Any] = {}
    if model.prompt_in_qformer:
        more["prompt_in_qformer"] = True
    if model.prompt_template != "plain":
        more["prompt_template"] = model.prompt_template
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
        **more,
    }


def _copy_tokenizer(spec: str, target: pathlib.Path, language_model: bool) -> str:
    """Copy the files of a tokenizer's directory; return what `model.json` records.

    A tokenizer with added tokens is written anew.
    """
    added = split_spec(spec)[1]
    if not added and (not spec or spec.startswith("shapes:")):
        return spec
    target.mkdir()
    if added or spec.startswith(LAVIS_PREFIX):
        save_tokenizer(spec, target, language_model)
        return target.name
    for file in sorted(tokenizer_directory(spec).iterdir()):
        if file.is_file() and file.name in TOKENIZER_FILES:
            shutil.copy(file, target / file.name)
    return target.name
