"""The parameters that a run begins with, and the account of where each came from.

A run starts from random values unless its configuration names a run or files to start
from. Then every parameter is listed as taken, new or left behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from blip2_jax.convert.model_source import TOWER_PREFIXES, TOWERS
from blip2_jax.convert.positions import at_size, notes_of
from blip2_jax.models.presets import Blip2Config
from blip2_jax.nn import trees
from blip2_jax.nn.trees import Tree, flatten, unflatten
from blip2_jax.parallel import sharding
from blip2_jax.training.checkpoints import Checkpoints, is_run
from blip2_jax.training.frozen import (
    Manifest,
    Tower,
    WeightsError,
    load_frozen,
    open_weights,
    random_weights,
)
from blip2_jax.training.tasks import Task, compute_dtype, model_config

INIT_STREAM = 0x1A17  # keeps initial values apart from the keys of steps
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class InitialParams:
    """What training needs before its first step.

    Attributes:
      trainable: fp32, on the mesh.
      carried: host arrays for checkpoints only.
      report: lines for the user: what was taken, what is new, what was left.
    """

    trainable: Tree
    carried: Tree
    report: list[str]


def parameter_shapes(config: ConfigDict, task: Task) -> trees.Partition:
    """Trainable and frozen parameters as `jax.ShapeDtypeStruct`s; no memory is used.

    Raises:
      ValueError: a rule of `config.frozen` matches nothing.
    """
    shapes = jax.eval_shape(task.init_params, jax.random.key(0))
    return trees.split(shapes, config.frozen)


def load_frozen_parameters(
    config: ConfigDict, task: Task, shapes: Tree, mesh: Mesh
) -> tuple[Tree, Manifest]:
    """The frozen parameters in the compute dtype on the mesh, and their manifest.

    Args:
      shapes: `parameter_shapes(...).frozen`.
      mesh: of the run.
      config, task: see `frozen_sources`.

    Raises:
      WeightsError: no source is named, or a source lacks an array.
    """
    if not shapes:
        return {}, {}
    sources = frozen_sources(config, task, list(flatten(shapes)))
    return load_frozen(shapes, sources, compute_dtype(config), mesh)


def frozen_sources(
    config: ConfigDict, task: Task, paths: list[str]
) -> dict[str, Arrays]:
    """Where the frozen parameters of these paths are, by name of the source.

    Args:
      config: `frozen_sources` names the weights of the towers; frozen parts of the
        rest come from `init`.
      task: only for sources called "random".

    Raises:
      WeightsError: no source is named.
      SourceError: there is nothing, or something else, where one is named.
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
        sources[f"{spec} ({tower})" if spec == "random" else spec] = (
            random_weights(task.init_params, config.seed, prefix)
            if spec == "random"
            else tower_weights(spec, model_config(config.model))
        )
    if not all(path.startswith(TOWERS) for path in paths):
        sources |= given_arrays(config)
    return sources


def tower_weights(spec: str, sizes: Blip2Config) -> Arrays:
    """The weights of a tower: of a file, or of the newest checkpoint of a run."""
    if is_run(spec):
        return at_size(run_arrays(spec), sizes.vision)
    return open_weights(spec, sizes)


def initialise(
    config: ConfigDict, task: Task, shapes: Tree, mesh: Mesh
) -> InitialParams:
    """Trainable and carried parameters of a new run.

    Args:
      config: `init` says where from; a tower that is trained and not in there begins
        as `frozen_sources` says. All empty: random values only.
      task: of the run.
      shapes: `parameter_shapes(...).trainable`.
      mesh: of the run.

    Raises:
      WeightsError: an array has another shape than the model's, a carried rule
        matches nothing in what is given, nothing at all could be taken, or a tower
        is to be trained of which nothing is given while other parts are.
    """
    trainable = random_parameters(config, task, shapes, mesh)
    given = given_arrays(config)
    count = len(flatten(shapes))
    given |= trained_towers(config, list(flatten(shapes)), given)
    if not given:
        return InitialParams(
            trainable, {}, [f"from scratch: {count} arrays are random"]
        )
    return _take(config, task, trainable, given, mesh)


def trained_towers(
    config: ConfigDict, paths: list[str], given: Mapping[str, Arrays]
) -> dict[str, Arrays]:
    """Towers that are trained on, from where they would be frozen; by source.

    Args:
      config: of the run.
      paths: of the trainable parameters.
      given: what `config.init` names; a tower in there goes on as it is.

    Raises:
      WeightsError: other parts are given, but of this tower nothing is.
    """
    found: dict[str, Arrays] = {}
    for tower, prefix in TOWER_PREFIXES.items():
        held = any(
            path.startswith(prefix) for arrays in given.values() for path in arrays
        )
        if held or not any(path.startswith(prefix) for path in paths):
            continue
        spec = config.frozen_sources[tower]
        if not spec and given:
            raise WeightsError(
                f"{prefix} is to be trained, and {', '.join(given)} hold nothing of "
                f"it: name its weights in config.frozen_sources.{tower} (or "
                '"random")'
            )
        if spec and spec != "random":
            arrays = tower_weights(spec, model_config(config.model))
            found[spec] = Tower(arrays, prefix)
    return found


def random_parameters(config: ConfigDict, task: Task, shapes: Tree, mesh: Mesh) -> Tree:
    """Fresh trainable parameters; frozen ones are never made."""
    wanted = flatten(shapes).keys()

    def create(key: jax.Array) -> Tree:
        flat = flatten(task.init_params(key))
        return unflatten({path: flat[path].astype(jnp.float32) for path in wanted})

    key = jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM)
    return jax.jit(create, out_shardings=sharding.tree_shardings(shapes, mesh))(key)


def given_arrays(config: ConfigDict) -> dict[str, Arrays]:
    """Arrays by path, by name of the run or file that `config.init` names."""
    given: dict[str, Arrays] = {}
    for spec in config.init.from_weights:
        given[spec] = open_weights(spec, model_config(config.model))
    if config.init.from_run:
        arrays = run_arrays(config.init.from_run, config.init.which)
        vision = model_config(config.model).vision
        given[config.init.from_run] = at_size(arrays, vision)
    return given


def run_arrays(run_dir: str, which: str | int = "last") -> dict[str, np.ndarray]:
    """Trainable and carried parameters of a run, by path."""
    checkpoints = Checkpoints(run_dir, read_only=True)
    try:
        trees = checkpoints.read(
            checkpoints.find(which), ("trainable", "carried")
        ).trees
    finally:
        checkpoints.close()
    return flatten(trees.merge(*trees.values()))


def _take(
    config: ConfigDict, task: Task, fresh: Tree, given: dict[str, Arrays], mesh: Mesh
) -> InitialParams:
    """Replace fresh values by given ones; files go before the run."""
    flat = flatten(fresh)
    ours = flatten(jax.eval_shape(task.init_params, jax.random.key(0)))
    layout = flatten(sharding.tree_shardings(fresh, mesh))
    carried: dict[str, np.ndarray] = {}
    report, taken = [], set()
    for name, arrays in given.items():
        used = [path for path in arrays if path in flat and path not in taken]
        for path in used:
            flat[path] = _placed(path, arrays[path], flat[path], layout[path], name)
        kept = [
            path
            for path in arrays
            if path not in ours
            and path not in carried
            and trees.matches(config.carried, path)
        ]
        carried |= {path: np.asarray(arrays[path]) for path in kept}
        left = [path for path in arrays if path not in used and path not in kept]
        taken |= set(used)
        report += _account(name, used, kept, left)
        report += [f"from {name}: {note}" for note in notes_of(arrays)]
    if not taken:
        raise WeightsError(f"{', '.join(given)} hold no parameter of this model")
    # A rule may name what this task trains (VQA: the Q-Former's text branch).
    trees.check_patterns("carried", config.carried, (*carried, *taken))
    new = [path for path in flat if path not in taken]
    report.append(f"new (random): {_summary(new)}")
    return InitialParams(unflatten(flat), unflatten(carried), report)


def _placed(
    path: str, array: Any, fresh: jax.Array, place: Any, name: str
) -> jax.Array:
    if array.shape != fresh.shape:
        raise WeightsError(
            f"{path} is {array.shape} in {name}, the model needs {fresh.shape}"
        )
    return sharding.shard_tree(np.asarray(array, np.float32), place)


def _account(name: str, used: list[str], kept: list[str], left: list[str]) -> list[str]:
    return [
        f"from {name}: taken {_summary(used)}",
        f"from {name}: carried {_summary(kept)}",
        f"from {name}: left {_summary(left)}",
    ]


def _summary(paths: list[str]) -> str:
    """How many arrays, and of which parts of the tree."""
    parts: dict[str, int] = {}
    for path in paths:
        top = path.split("/")[0]
        parts[top] = parts.get(top, 0) + 1
    inside = ", ".join(f"{top} {count}" for top, count in parts.items())
    return f"{len(paths)} arrays" + (f" ({inside})" if inside else "")
