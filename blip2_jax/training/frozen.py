"""Weights that a run reads from elsewhere, and the manifest of its frozen parameters.

A run's checkpoints do not hold its frozen parameters. `RUN/sources.json` has their
manifest instead, which lists the digest of every source array. A run that would
continue with other weights is stopped. Files may move, and may be converted in between.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blip2_jax.convert.files.checkpoint_files import LazyArrays, part_reader
from blip2_jax.convert.model_source import TOWER_PREFIXES, TOWERS
from blip2_jax.convert.native_folder import FolderArrays, Manifest, manifest_entry
from blip2_jax.convert.positions import POSITIONS, arrays_at_size, notes_of
from blip2_jax.convert.tables.name_table import shorten
from blip2_jax.convert.vocabulary import arrays_at_vocabulary
from blip2_jax.convert.weights import open_arrays
from blip2_jax.models.presets import Blip2Config
from blip2_jax.nn.quantized import quantize_parameter
from blip2_jax.nn.trees import Tree, flatten, merge, unflatten
from blip2_jax.parallel import hosts, sharding
from blip2_jax.parallel.files import FileFormatError, read_json
from blip2_jax.training.checkpoints import Checkpoints, is_run
from blip2_jax.training.tasks import model_config
from blip2_jax.training.train_config import read_config

SHIPPED = pathlib.Path(__file__).parents[1] / "data" / "shapes" / "weights"
SOURCES = "sources.json"  # in the directory of a run
Arrays = Mapping[str, np.ndarray]


class WeightsError(ValueError):
    """Weights that are missing, of another shape, or not those of the run."""


def open_weights(spec: str, sizes: Blip2Config) -> Arrays:
    """Open the weights that a specification names as parameters by path.

    Args:
      spec: "shapes:vision", "shapes:opt" or "shapes:t5" for shipped weights, also with
        the suffix "_small"; or a file or folder of this package or of another project
        (see `convert.weights.open_arrays`).
      sizes: of the model that will use the weights.
    """
    if spec.startswith("shapes:"):
        spec = str(SHIPPED / f"{spec.removeprefix('shapes:')}.safetensors")
    return open_arrays(spec, sizes)


def run_arrays(run_dir: str, which: str | int = "last") -> dict[str, np.ndarray]:
    """Read trainable and carried parameters of a run by path; see `read_checkpoint`."""
    return read_checkpoint(run_dir, which)[1]


def read_checkpoint(
    run_dir: str | pathlib.Path, which: str | int
) -> tuple[int, dict[str, np.ndarray]]:
    """Read trainable and carried parameters of a checkpoint.

    Args:
      run_dir: directory of the run.
      which: checkpoint: "best" by the score of the run, "last" or a step.

    Returns:
      The step, and the parameters by path.
    """
    # The mode says whether a higher score is better.
    mode = read_config(run_dir).evaluation.mode if which == "best" else "max"
    with _without_warnings():
        checkpoints = Checkpoints(run_dir, mode=mode, read_only=True)
        try:
            step = checkpoints.find(which)
            trees = checkpoints.read(step, ("trainable", "carried")).trees
        finally:
            checkpoints.close()
    return step, flatten(merge(*trees.values()))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Let orbax report errors only: it warns whenever a checkpoint is only read."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(min(verbosity, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def tower_weights(spec: str, sizes: Blip2Config) -> Arrays:
    """Open the weights of a tower: of a file, or of the last checkpoint of a run."""
    if is_run(spec):
        arrays = arrays_at_size(run_arrays(spec), sizes.vision)
        return arrays_at_vocabulary(arrays, sizes)
    return open_weights(spec, sizes)


def initial_weights(config: ConfigDict) -> dict[str, Arrays]:
    """Open the weights that `config.init` names.

    Returns:
      Parameters by path, by name of the file or run. Files come first.
    """
    sizes = model_config(config.model)
    sources: dict[str, Arrays] = {
        spec: open_weights(spec, sizes) for spec in config.init.from_weights
    }
    if config.init.from_run:
        arrays = run_arrays(config.init.from_run, config.init.which)
        resized = arrays_at_size(arrays, sizes.vision)
        sources[config.init.from_run] = arrays_at_vocabulary(resized, sizes)
    return sources


def frozen_sources(
    config: ConfigDict,
    init_params: Callable[[jax.Array], Tree],
    paths: list[str],
) -> dict[str, Arrays]:
    """Open the sources of frozen parameters.

    Args:
      config: `frozen_sources` names the weights of the towers; other frozen parameters
        come from `init`.
      init_params: initialiser of the model, for sources called "random".
      paths: of the frozen parameters.

    Returns:
      Parameters by path, by name of the source.

    Raises:
      WeightsError: no source is named.
      SourceError: a source is missing or holds something else.
    """
    sources: dict[str, Arrays] = {}
    for tower, prefix in TOWER_PREFIXES.items():
        if not any(path.startswith(prefix) for path in paths):
            continue
        spec = config.frozen_sources[tower]
        if not spec:
            raise WeightsError(
                f"config.frozen_sources.{tower} is empty, but {prefix} is frozen: name "
                "its weights (a file or folder of its own project or of this package, "
                'or "shapes:...")'
            )
        if spec == "random":
            name = f"{spec} ({tower})"
            sources[name] = random_weights(init_params, config.seed, prefix)
        else:
            sources[spec] = tower_weights(spec, model_config(config.model))
    if not all(path.startswith(TOWERS) for path in paths):
        sources |= initial_weights(config)
    return sources


def random_weights(
    init_params: Callable[[jax.Array], Tree], seed: int, prefix: str
) -> dict[str, np.ndarray]:
    """Draw fresh parameters below a path prefix, as a source for tests and timings."""

    def create(key: jax.Array) -> dict[str, jax.Array]:
        params = flatten(init_params(key))
        return {path: params[path] for path in params if path.startswith(prefix)}

    return jax.device_get(jax.jit(create)(jax.random.key(seed)))


class TowerArrays(LazyArrays):
    """The parameters of one tower from a source that may hold more.

    Attributes:
      notes: lines for the user on how the source was changed (`convert.positions`).
    """

    def __init__(self, arrays: Arrays, prefix: str) -> None:
        self._arrays, self.notes = arrays, notes_of(arrays)
        super().__init__(path for path in arrays if path.startswith(prefix))

    def __getitem__(self, path: str) -> np.ndarray:
        return self._arrays[path]


def load_frozen(
    shapes: Tree,
    sources: Mapping[str, Arrays],
    dtype: Any,
    mesh: Mesh,
    unused: tuple[str, ...] = (),
    schemes: Mapping[str, str] | None = None,
) -> tuple[Tree, Manifest]:
    """Read frozen parameters one by one, cast them and place them on the mesh.

    Args:
      shapes: the frozen part of the tree, as shapes.
      sources: parameters by path, by name of the source. The first source that has a
        path provides it.
      dtype: of the result.
      mesh: see `sharding.make_mesh`.
      unused: path prefixes of parameters that are not placed.
      schemes: quantisation by prefix of paths; see `nn.quantized.scheme_of`.

    Returns:
      The tree without the unused parameters, and the manifest of all: for every path
      the source, and digest, shape and dtype of the array there; `notes` if it was
      resized.

    Raises:
      WeightsError: no source has a path, or it has another shape there.
    """
    expected = flatten(shapes)
    shardings = flatten(sharding.tree_shardings(shapes, mesh))
    loaded, manifest = {}, {}
    for path, name in find_sources(expected, sources).items():
        entry, read = _open_array(sources[name], path)
        if (shape := tuple(entry["shape"])) != expected[path].shape:
            raise WeightsError(
                f"{path} is {shape} in {name}, the model needs {expected[path].shape}"
            )
        manifest[path] = entry | {"source": name}
        if path == POSITIONS and (notes := notes_of(sources[name])):
            manifest[path]["notes"] = list(notes)
        if path.startswith(unused):
            continue
        array = sharding.make_sharded_array(shape, shardings[path], read, dtype)
        loaded[path] = quantize_parameter(path, array, schemes or {})
    return unflatten(loaded), manifest


def _open_array(arrays: Arrays, path: str) -> tuple[dict[str, Any], sharding.ReadSlice]:
    """Return an array's manifest entry and a function that reads parts of it.

    A converted folder has digests, which the first process compares with the files, so
    that every process reads only the parts of its own devices. Other arrays are read in
    full to be hashed.
    """
    if isinstance(arrays, FolderArrays):
        entry = arrays.origin(path) if hosts.is_first() else arrays.manifest[path]
        return entry, part_reader(arrays, path)
    array = arrays[path]
    return manifest_entry(arrays, path, array), array.__getitem__


def find_sources(
    params: Mapping[str, Any], sources: Mapping[str, Arrays]
) -> dict[str, str]:
    """Find the source of each frozen parameter.

    Args:
      params: frozen parameters by path; only the paths are used.
      sources: parameters by path, by name of the source.

    Returns:
      The name of the first source that has a path, by path.

    Raises:
      WeightsError: no source has a path.
    """
    source_of: dict[str, str] = {}
    for path in params:
        for name, arrays in sources.items():
            if path in arrays:
                source_of[path] = name
                break
    missing = [path for path in params if path not in source_of]
    if missing:
        raise WeightsError(
            f"{len(missing)} frozen parameters are in no source "
            f"({', '.join(sources) or 'no source is named'}): {shorten(missing, 3)}"
        )
    return source_of


def read_sources(directory: pathlib.Path) -> dict[str, Any]:
    """Read `sources.json` of a run.

    Returns:
      "frozen": the manifest of the frozen parameters; "data": the fingerprint of the
      training data; "hub", of later runs: names of the hub with their commits by the
      name in the configuration that was given.

    Raises:
      FileFormatError: the file is damaged.
      OSError: it cannot be read.
    """
    sources = read_json(directory / SOURCES)
    if not isinstance(sources, dict) or not {"frozen", "data"} <= sources.keys():
        raise FileFormatError(
            f"{directory / SOURCES} has no manifest of frozen weights and data"
        )
    return sources


def recorded_hub_names(directory: pathlib.Path) -> dict[str, str]:
    """Return the names of the hub that a run began with; {} if there is no run."""
    if not (directory / SOURCES).is_file():
        return {}
    return read_sources(directory).get("hub", {})


def verify_manifest(recorded: Manifest, current: Manifest) -> None:
    """Compare the frozen parameters of a run with those that it began with.

    Raises:
      WeightsError: values, shapes or paths differ; the message names the arrays.
    """
    differing = sorted(
        path
        for path in recorded.keys() | current.keys()
        if _identity(recorded, path) != _identity(current, path)
        or _cast_differs(recorded.get(path, {}), current.get(path, {}))
    )
    if differing:
        path = differing[0]
        raise WeightsError(
            f"{len(differing)} frozen arrays are not those that this run began with: "
            f"{shorten(differing, 3)}; {path} was {_describe(recorded, path)}, "
            f"is {_describe(current, path)}"
        )


def _identity(manifest: Manifest, path: str) -> tuple[Any, ...] | None:
    entry = manifest.get(path)
    return None if entry is None else (entry["digest"], *entry["shape"])


def _cast_differs(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Return True if an array was cast to the same dtype, but to other values."""
    if "stored" not in recorded or "stored" not in current:
        return False
    same_dtype = recorded["stored_dtype"] == current["stored_dtype"]
    return same_dtype and recorded["stored"] != current["stored"]


def _describe(manifest: Manifest, path: str) -> str:
    entry = manifest.get(path)
    if entry is None:
        return "missing"
    return f"{entry['digest'][:12]} {tuple(entry['shape'])} from {entry['source']}"
