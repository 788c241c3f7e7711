"""The parameters that a run begins with, and a report of where each came from.

A run starts from random values unless `config.init` names a run or files. Then every
parameter is reported as taken, new or left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from blip2_jax.convert.model_source import TOWER_PREFIXES
from blip2_jax.convert.positions import notes_of
from blip2_jax.nn import trees
from blip2_jax.nn.low_rank import is_matrix
from blip2_jax.nn.quantized import quantized_shapes
from blip2_jax.nn.trees import Tree, flatten, unflatten
from blip2_jax.parallel import sharding
from blip2_jax.training import lora, new_tokens
from blip2_jax.training.frozen import (
    Arrays,
    Manifest,
    TowerArrays,
    WeightsError,
    frozen_sources,
    initial_weights,
    load_frozen,
    tower_weights,
)
from blip2_jax.training.tasks import Task, compute_dtype, model_config
from blip2_jax.training.train_config import DEFAULT_RULES, read_config

INIT_STREAM = 0x1A17  # keeps initial values independent of the keys of steps
LORA_STREAM = 0x10AA  # likewise, of the other initial values


@dataclasses.dataclass(frozen=True)
class InitialParams:
    """Parameters before the first step.

    Attributes:
      trainable: fp32, on the mesh.
      carried: host arrays that are only kept in checkpoints.
      report: lines for the user: parameters that were taken, are new or were left.
    """

    trainable: Tree
    carried: Tree
    report: list[str]


def parameter_shapes(config: ConfigDict, task: Task) -> trees.Partition:
    """Return shapes of trainable and frozen parameters, without allocation.

    Raises:
      ValueError: see `lora.split_parameters`.
    """
    return lora.split_parameters(config, task.parameter_shapes())


def load_frozen_parameters(
    config: ConfigDict,
    task: Task,
    shapes: Tree,
    mesh: Mesh,
    unused: tuple[str, ...] = (),
) -> tuple[Tree, Manifest]:
    """Load the frozen parameters of a run in the compute dtype.

    Args:
      config: see `frozen_sources`.
      task: of the run.
      shapes: `parameter_shapes(...).frozen`.
      mesh: of the run.
      unused: path prefixes of parameters that are only hashed.

    Returns:
      The parameters on the mesh, and the manifest of all.

    Raises:
      WeightsError: no source is named, or a source lacks an array.
    """
    if not shapes:
        return {}, {}
    sources = frozen_sources(config, task.init_params, list(flatten(shapes)))
    return load_frozen(
        shapes, sources, compute_dtype(config), mesh, unused, frozen_schemes(config)
    )


def frozen_schemes(config: ConfigDict) -> dict[str, str]:
    """Return the quantisation of frozen parameters by prefix of their paths."""
    schemes = config.get("frozen_precision", {})  # runs of earlier versions have none
    return {TOWER_PREFIXES[tower]: scheme for tower, scheme in schemes.items()}


def frozen_shapes(config: ConfigDict, shapes: Tree) -> Tree:
    """Return shapes and dtypes of frozen parameters as `load_frozen_parameters` does.

    Args:
      config: of the run.
      shapes: `parameter_shapes(...).frozen`.
    """
    dtype = compute_dtype(config)
    stored = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    return quantized_shapes(stored, frozen_schemes(config))


def initialise(
    config: ConfigDict, task: Task, shapes: Tree, mesh: Mesh
) -> InitialParams:
    """Make trainable and carried parameters of a new run.

    Args:
      config: `init` names the sources; a trained tower that they lack comes from
        `frozen_sources`. With neither, all values are random.
      task: of the run.
      shapes: `parameter_shapes(...).trainable`.
      mesh: of the run.

    Raises:
      WeightsError: an array has another shape than the model's; the sources hold
        nothing of this model; or they lack a tower that is to be trained.
      ValueError: a pattern of `config.carried`, other than the defaults, matches
        nothing; or the run of `config.init` has LoRA and this run has another.
    """
    fresh = random_parameters(config, task, shapes, mesh)
    paths = [path for path in flatten(shapes) if not is_matrix(path)]
    sources = initial_weights(config)
    former = config.init.from_run
    if former and any(map(is_matrix, sources[former])):
        lora.check_same_lora(config, read_config(former), former)
    sources |= trained_towers(config, paths, sources)
    sources = new_tokens.with_rows(config, sources)
    if not sources:
        report = [f"from scratch: {len(paths)} arrays are random"]
        return InitialParams(fresh, {}, report)
    return _from_sources(config, task, fresh, sources, mesh)


def trained_towers(
    config: ConfigDict, paths: Sequence[str], sources: Mapping[str, Arrays]
) -> dict[str, Arrays]:
    """Open the weights of trained towers that `config.init` does not provide.

    Args:
      config: `frozen_sources` names the weights.
      paths: of the trainable parameters.
      sources: opened from `config.init`.

    Returns:
      Parameters by path, by name of the source.

    Raises:
      WeightsError: `config.init` provides other parameters, but none of a tower that
        has no source either.
    """
    towers: dict[str, Arrays] = {}
    for tower, prefix in TOWER_PREFIXES.items():
        is_trained = any(path.startswith(prefix) for path in paths)
        is_provided = any(
            path.startswith(prefix) for arrays in sources.values() for path in arrays
        )
        if is_provided or not is_trained:
            continue
        spec = config.frozen_sources[tower]
        if not spec and sources:
            raise WeightsError(
                f"{prefix} is to be trained, but {', '.join(sources)} hold none of its "
                f"parameters: name its weights in config.frozen_sources.{tower} (or "
                '"random")'
            )
        if spec and spec != "random":
            arrays = tower_weights(spec, model_config(config.model))
            towers[spec] = TowerArrays(arrays, prefix)
    return towers


def random_parameters(config: ConfigDict, task: Task, shapes: Tree, mesh: Mesh) -> Tree:
    """Draw trainable parameters on the mesh; frozen ones are not computed."""
    leaves = flatten(shapes)
    paths = leaves.keys()

    def create(key: jax.Array) -> Tree:
        params = flatten(task.init_params(key))
        params |= lora.initial_matrices(leaves, jax.random.fold_in(key, LORA_STREAM))
        return unflatten({path: params[path].astype(jnp.float32) for path in paths})

    key = jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM)
    return jax.jit(create, out_shardings=sharding.tree_shardings(shapes, mesh))(key)


def _from_sources(
    config: ConfigDict,
    task: Task,
    fresh: Tree,
    sources: Mapping[str, Arrays],
    mesh: Mesh,
) -> InitialParams:
    """Replace fresh values by those of the sources; the first source has priority."""
    params = flatten(fresh)
    model_paths = flatten(task.parameter_shapes()).keys()
    shardings = flatten(sharding.tree_shardings(fresh, mesh))
    carried: dict[str, np.ndarray] = {}
    taken: set[str] = set()
    report: list[str] = []
    for name, arrays in sources.items():
        used = [path for path in arrays if path in params and path not in taken]
        for path in used:
            params[path] = _place(
                path, arrays[path], params[path].shape, shardings[path], name
            )
        kept = [
            path
            for path in arrays
            if path not in model_paths
            and path not in carried
            and trees.matches(config.carried, path)
        ]
        carried |= {path: np.asarray(arrays[path]) for path in kept}
        left = [path for path in arrays if path not in used and path not in kept]
        taken |= set(used)
        report += [
            f"from {name}: taken {_summary(used)}",
            f"from {name}: carried {_summary(kept)}",
            f"from {name}: left {_summary(left)}",
            *(f"from {name}: {note}" for note in notes_of(arrays)),
        ]
    # With LoRA, all else may be frozen.
    if not taken and not any(map(is_matrix, params)):
        raise WeightsError(f"{', '.join(sources)} hold no parameter of this model")
    # This task may train what the pattern names, as VQA trains the text branch.
    paths = (*carried, *taken)
    trees.check_patterns("carried", config.carried, paths, optional=DEFAULT_RULES)
    new = [path for path in params if path not in taken]
    report.append(f"new (random): {_summary(new)}")
    return InitialParams(unflatten(params), unflatten(carried), report)


def _place(
    path: str,
    array: Any,
    shape: tuple[int, ...],
    layout: NamedSharding,
    source: str,
) -> jax.Array:
    """Place an array of a source on the mesh in fp32; check its shape."""
    if array.shape != shape:
        raise WeightsError(
            f"{path} is {array.shape} in {source}, the model needs {shape}"
        )
    return sharding.shard_tree(np.asarray(array, np.float32), layout)


def _summary(paths: list[str]) -> str:
    """Count arrays, in all and by top-level name of the tree."""
    counts: dict[str, int] = {}
    for path in paths:
        top = path.split("/")[0]
        counts[top] = counts.get(top, 0) + 1
    details = ", ".join(f"{top} {count}" for top, count in counts.items())
    return f"{len(paths)} arrays" + (f" ({details})" if details else "")
