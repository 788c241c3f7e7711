"""Weights from files, and the record of which ones a run was given.

A run's checkpoints do not hold its frozen parameters. They are named instead: a
manifest lists the digest of every array as its origin held it, and a run that continues
with other weights is stopped. Files may move, and may be converted in between.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from blip2_jax.convert.files.lazy_arrays import LazyArrays
from blip2_jax.convert.native_folder import FolderArrays, Manifest, entry, reader
from blip2_jax.convert.positions import POSITIONS, notes_of
from blip2_jax.convert.tables.name_table import listed
from blip2_jax.convert.weights import open_arrays
from blip2_jax.models.presets import Blip2Config
from blip2_jax.nn.trees import Tree, flatten, unflatten
from blip2_jax.parallel import sharding

SHIPPED = pathlib.Path(__file__).parents[1] / "data" / "shapes" / "weights"


class WeightsError(ValueError):
    """Weights that are missing, of another shape, or not those of the run."""


def open_weights(spec: str, sizes: Blip2Config) -> Mapping[str, np.ndarray]:
    """The weights that a specification names, read when asked for.

    Args:
      spec: "shapes:vision", "shapes:opt", "shapes:t5", and each with "_small" behind it
        (shipped); or a file or folder in this package's names or in those of another
        project (`convert.weights`).
      sizes: of the model that they are for.
    """
    if spec.startswith("shapes:"):
        spec = str(SHIPPED / f"{spec.removeprefix('shapes:')}.safetensors")
    return open_arrays(spec, sizes)


def random_weights(
    init_params: Callable[[jax.Array], Tree], seed: int, prefix: str
) -> dict[str, np.ndarray]:
    """Fresh parameters as a source, for tests and timings; asked for by name only."""

    def create(key: jax.Array) -> dict[str, jax.Array]:
        flat = flatten(init_params(key))
        return {path: flat[path] for path in flat if path.startswith(prefix)}

    return jax.device_get(jax.jit(create)(jax.random.key(seed)))


class Tower(LazyArrays):
    """The arrays of one tower alone, of a source that may hold more.

    Attributes:
      notes: of the source (`convert.positions`).
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
        self._arrays, self.notes = arrays, notes_of(arrays)
        super().__init__(path for path in arrays if path.startswith(prefix))

    def __getitem__(self, path: str) -> np.ndarray:
        return self._arrays[path]


def load_frozen(
    shapes: Tree,
    sources: Mapping[str, Mapping[str, np.ndarray]],
    dtype: Any,
    mesh: Mesh,
) -> tuple[Tree, Manifest]:
    """Read frozen parameters one by one, cast them and place them on the mesh.

    Args:
      shapes: the frozen part of the tree, as shapes.
      sources: arrays by parameter path, by name of the source; the first that has a
        path provides it.
      dtype: in which they are kept.
      mesh: see `sharding.make_mesh`.

    Returns:
      The tree, and for every path its source, digest, shape and dtype (of the source),
      and `notes` on what was resized.

    Raises:
      WeightsError: a path is in no source, or has another shape there.
    """
    flat = flatten(shapes)
    layout = flatten(sharding.tree_shardings(shapes, mesh))
    loaded, manifest = {}, {}
    for path, name in find_sources(flat, sources).items():
        found, read = _look_up(sources[name], path)
        if (shape := tuple(found["shape"])) != flat[path].shape:
            raise WeightsError(
                f"{path} is {shape} in {name}, the model needs {flat[path].shape}"
            )
        manifest[path] = found | {"source": name}
        if path == POSITIONS and (notes := notes_of(sources[name])):
            manifest[path]["notes"] = list(notes)
        loaded[path] = sharding.make_sharded_array(shape, layout[path], read, dtype)
    return unflatten(loaded), manifest


def _look_up(
    arrays: Mapping[str, np.ndarray], path: str
) -> tuple[dict[str, Any], sharding.ReadSlice]:
    """An array's entry, and a way to read parts of it.

    Of a converted folder, which has digests, a process reads its devices' parts
    alone; other arrays have to be hashed, and so are read whole.
    """
    if isinstance(arrays, FolderArrays):
        return arrays.origin(path), reader(arrays, path)
    array = arrays[path]
    return entry(arrays, path, array), array.__getitem__


def find_sources(
    flat: Mapping[str, Any], sources: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, str]:
    """Which source provides each path; an error that names paths without one."""
    found = {
        path: next((name for name, arrays in sources.items() if path in arrays), None)
        for path in flat
    }
    missing = [path for path, name in found.items() if name is None]
    if missing:
        raise WeightsError(
            f"{len(missing)} frozen parameters are in no source "
            f"({', '.join(sources) or 'none given'}): {listed(missing, 3)}"
        )
    return {path: name for path, name in found.items() if name is not None}


def verify(expected: Manifest, found: Manifest) -> None:
    """Raise a WeightsError that names arrays which are not those of the manifest."""
    differ = [
        path
        for path in expected.keys() | found.keys()
        if _identity(expected, path) != _identity(found, path)
    ]
    if differ:
        path = min(differ)
        raise WeightsError(
            f"{len(differ)} frozen arrays are not those that this run began with: "
            f"{listed(sorted(differ), 3)}; {path} was {_describe(expected, path)}, "
            f"is {_describe(found, path)}"
        )


def _identity(manifest: Manifest, path: str) -> tuple[Any, ...] | None:
    entry = manifest.get(path)
    return None if entry is None else (entry["digest"], *entry["shape"])


def _describe(manifest: Manifest, path: str) -> str:
    entry = manifest.get(path)
    if entry is None:
        return "not there"
    return f"{entry['digest'][:12]} {tuple(entry['shape'])} from {entry['source']}"
