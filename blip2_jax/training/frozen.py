"""Weights from files, and the record of which ones a run was given.

A run's checkpoints do not hold its frozen parameters. They are named instead: a
manifest lists the digest of every array as its file held it, and a run that continues
with other weights is stopped.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors import safe_open

from blip2_jax import sharding
from blip2_jax.training.partition import Tree, flatten, unflatten

SHIPPED = pathlib.Path(__file__).parents[1] / "data" / "shapes" / "weights"
Manifest = dict[str, dict[str, Any]]


class WeightsError(ValueError):
    """Weights that are missing, of another shape, or not those of the run."""


class WeightsFile(Mapping[str, np.ndarray]):
    """The arrays of a safetensors file, or of a directory of them, read when asked for.

    Names are this package's "/"-joined parameter paths.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        path = pathlib.Path(path)
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files or not files[0].exists():
            raise WeightsError(f"{path} is no safetensors file or directory of them")
        self._file_of: dict[str, pathlib.Path] = {}
        for file in files:
            with safe_open(file, "np") as content:
                self._file_of |= dict.fromkeys(content.keys(), file)

    def __getitem__(self, name: str) -> np.ndarray:
        with safe_open(self._file_of[name], "np") as content:
            return content.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def open_weights(spec: str) -> WeightsFile:
    """The weights that a specification names.

    Args:
      spec: a path, or "shapes:vision", "shapes:opt", "shapes:t5" (shipped).
    """
    if spec.startswith("shapes:"):
        return WeightsFile(SHIPPED / f"{spec.removeprefix('shapes:')}.safetensors")
    return WeightsFile(spec)


class RandomWeights(Mapping[str, np.ndarray]):
    """Fresh parameters as a source, for tests and timings; asked for by name only."""

    def __init__(
        self, init_params: Callable[[jax.Array], Tree], seed: int, prefix: str
    ) -> None:
        def create(key: jax.Array) -> dict[str, jax.Array]:
            flat = flatten(init_params(key))
            return {path: flat[path] for path in flat if path.startswith(prefix)}

        self._arrays = jax.device_get(jax.jit(create)(jax.random.key(seed)))

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def digest(array: np.ndarray) -> str:
    """SHA-256 of the values in row-major, little-endian bytes."""
    array = np.atleast_1d(np.ascontiguousarray(array))
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return hashlib.sha256(array.view(np.uint8).data).hexdigest()


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
      The tree, and for every path its source, digest, shape and dtype (of the source).

    Raises:
      WeightsError: a path is in no source, or has another shape there.
    """
    flat = flatten(shapes)
    layout = flatten(sharding.shardings(shapes, mesh))
    loaded, manifest = {}, {}
    for path, name in find_sources(flat, sources).items():
        array = sources[name][path]
        if array.shape != flat[path].shape:
            raise WeightsError(
                f"{path} is {array.shape} in {name}, the model needs {flat[path].shape}"
            )
        manifest[path] = {
            "source": name, "digest": digest(array), "shape": list(array.shape),
            "dtype": str(array.dtype),
        }
        loaded[path] = sharding.put(array.astype(dtype), layout[path])
    return unflatten(loaded), manifest


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
            f"({', '.join(sources) or 'none given'}): {_first(missing)}"
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
            f"{_first(sorted(differ))}; {path} was {_describe(expected, path)}, "
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


def _first(paths: list[str], count: int = 3) -> str:
    more = f" and {len(paths) - count} more" if len(paths) > count else ""
    return ", ".join(paths[:count]) + more
