"""Open what a run has trained, to use it or to write it out."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from blip2_jax.convert.files.lazy_arrays import LazyArrays
from blip2_jax.convert.model_source import TOWERS, ModelSource
from blip2_jax.convert.native_folder import Manifest, entry
from blip2_jax.nn.trees import flatten
from blip2_jax.training import frozen, initial_params
from blip2_jax.training import train_config as configuration
from blip2_jax.training.checkpoints import Checkpoints
from blip2_jax.training.setup import read_sources
from blip2_jax.training.tasks import make_task

USABLE = ("stage1", "stage2")


class RunArrays(LazyArrays):
    """What a checkpoint holds, and the frozen arrays where they came from."""

    def __init__(
        self,
        trained: Mapping[str, np.ndarray],
        sources: Mapping[str, Mapping[str, np.ndarray]],
        found: Mapping[str, str],
        manifest: Manifest,
    ) -> None:
        super().__init__([*found, *trained])
        self._trained, self._sources = trained, sources
        self._found, self._manifest = found, manifest

    def __getitem__(self, path: str) -> np.ndarray:
        if path in self._trained:
            return self._trained[path]
        arrays = self._sources[self._found[path]]
        array = arrays[path]
        now = entry(arrays, path, array) | {"source": self._found[path]}
        frozen.verify({path: self._manifest[path]}, {path: now})
        return array

    def origin(self, path: str) -> Any:
        """What the run's record says of a frozen array; else that the run made it."""
        return self._manifest.get(path, "run")


def open_trained(
    directory: pathlib.Path,
    which: str | int = "best",
    moved: Mapping[str, str] | None = None,
) -> ModelSource:
    """A checkpoint of a run with its frozen weights, read where they came from.

    Args:
      directory: the run's `--workdir`.
      which: "best", "last" or a step.
      moved: where frozen weights are now, by key of `config.frozen_sources`.

    Raises:
      ConfigError: it holds no run, or one of a task that makes no BLIP-2 model.
      CheckpointError: no such checkpoint, or a damaged one.
      WeightsError: frozen weights are missing; one that is not that of the run is
        an error when it is read.
    """
    config = configuration.read_config(directory)
    if config.task not in USABLE:
        raise configuration.ConfigError(
            f"{directory} is a run of task {config.task!r}; a model to use comes from "
            f"{' or '.join(USABLE)}"
        )
    with config.unlocked():
        config.frozen_sources.update(moved or {})
    task = make_task(config)
    shapes = initial_params.parameter_shapes(config, task)
    trained = _trained(directory, which, config.evaluation.mode, shapes.trainable)
    paths = list(flatten(shapes.frozen))
    sources = initial_params.frozen_sources(config, task, paths)
    found = frozen.find_sources(flatten(shapes.frozen), sources)
    tokenizer, stage2 = config.data.tokenizer, config.task == "stage2"
    sizes = task.model.config
    return ModelSource(
        dataclasses.replace(sizes, prompt=config.data.prompt or sizes.prompt),
        RunArrays(trained, sources, found, read_sources(directory)["frozen"]),
        "run",
        qformer_tokenizer=tokenizer.qformer,
        language_tokenizer=tokenizer.language_model if stage2 else "",
        question_prompt=config.data.question_prompt,
        elsewhere=tuple(t for t in TOWERS if any(p.startswith(t) for p in paths)),
        question_in_qformer=getattr(task.model, "question_in_qformer", False),
        precision=config.precision,
    )


def _trained(
    directory: pathlib.Path, which: str | int, mode: str, shapes: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Trained and carried arrays of a checkpoint; all that the model needs is there."""
    checkpoints = Checkpoints(directory, mode=mode, read_only=True)
    try:
        step = checkpoints.find(which)
        trees = checkpoints.read(step, ("trainable", "carried")).trees
    finally:
        checkpoints.close()
    found = {k: v for tree in trees.values() for k, v in flatten(tree).items()}
    for path, leaf in flatten(shapes).items():
        if path not in found or found[path].shape != leaf.shape:
            given = found[path].shape if path in found else "missing"
            raise frozen.WeightsError(
                f"{path} is {given} in checkpoint {step} of {directory}, the model "
                f"needs {leaf.shape}"
            )
    return found
