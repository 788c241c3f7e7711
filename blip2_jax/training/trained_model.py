"""The model of a training run, opened for inference or export."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from blip2_jax.convert.files.checkpoint_files import LazyArrays
from blip2_jax.convert.model_source import TOWERS, ModelSource, build_model
from blip2_jax.convert.native_folder import Manifest, manifest_entry
from blip2_jax.convert.peft_adapter import LoraMatrices
from blip2_jax.convert.tables.name_table import shorten
from blip2_jax.data.data_config import tokenizer_spec
from blip2_jax.models.blip2 import init_params, parameter_shapes
from blip2_jax.nn import low_rank
from blip2_jax.nn.trees import flatten
from blip2_jax.training.frozen import (
    WeightsError,
    find_sources,
    frozen_sources,
    read_checkpoint,
    read_sources,
    verify_manifest,
)
from blip2_jax.training.lora import lora_of, split_parameters
from blip2_jax.training.tasks import model_config
from blip2_jax.training.train_config import ConfigError, read_config

TASKS = ("stage1", "stage2")  # tasks that train a BLIP-2 model


def open_run(
    directory: pathlib.Path,
    which: str | int = "best",
    moved: Mapping[str, str] | None = None,
) -> ModelSource:
    """Open a checkpoint of a run together with its frozen weights.

    The frozen weights are read from their sources on access.

    Args:
      directory: the run's `--workdir`.
      which: "best", "last" or a step.
      moved: new locations of frozen weights, by key of `config.frozen_sources`.

    Raises:
      ConfigError: the directory holds no run, or one whose task trains no BLIP-2.
      CheckpointError: there is no such checkpoint, or it is damaged.
      WeightsError: frozen weights are missing. Weights that are not those of the run
        raise this error when they are read.
    """
    config = read_config(directory)
    if config.task not in TASKS:
        raise ConfigError(
            f"{directory} is a run of the task {config.task!r}; only runs of "
            f"{' and '.join(TASKS)} train a BLIP-2 model"
        )
    with config.unlocked():
        config.frozen_sources.update(moved or {})
    stage2 = config.task == "stage2"
    sizes = model_config(config.model)
    if not stage2:
        sizes = dataclasses.replace(sizes, language_model=None)
    # Runs of earlier versions do not have the key.
    question_in_qformer = stage2 and config.model.get("question_in_qformer", False)

    model = build_model(sizes, question_in_qformer)
    lora = lora_of(config)
    shapes = split_parameters(config, parameter_shapes(model))
    trained = _read_trained(directory, which, flatten(shapes.trainable))
    frozen = flatten(shapes.frozen)
    sources = frozen_sources(
        config, functools.partial(init_params, model), list(frozen)
    )
    arrays = RunArrays(
        trained,
        sources,
        find_sources(frozen, sources),
        read_sources(directory)["frozen"],
        lora.scale if lora else 0.0,
    )
    return ModelSource(
        dataclasses.replace(sizes, prompt=config.data.prompt or sizes.prompt),
        arrays,
        "run",
        qformer_tokenizer=tokenizer_spec(config.data, "qformer"),
        language_tokenizer=(
            tokenizer_spec(config.data, "language_model") if stage2 else ""
        ),
        question_prompt=config.data.question_prompt,
        prompt_template=config.data.get("prompt_template", "plain"),
        elsewhere=tuple(
            tower
            for tower in TOWERS
            if any(path.startswith(tower) for path in frozen)
            and not any(path.startswith(tower) for path in trained)
        ),
        question_in_qformer=question_in_qformer,
        prompt_in_qformer=question_in_qformer
        and config.data.get("qformer_reads") == "prompt",
        precision=config.precision,
    )


def open_matrices(directory: pathlib.Path, which: str | int = "best") -> LoraMatrices:
    """Open the matrices of LoRA of a run, not merged.

    Args:
      directory: the run's `--workdir`.
      which: "best", "last" or a step.

    Raises:
      ConfigError: the directory holds no run, or one without LoRA.
      WeightsError: the run trained other parameters too.
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    config = read_config(directory)
    lora = lora_of(config)
    if lora is None:
        raise ConfigError(f"{directory} is a run without LoRA")
    _, trained = read_checkpoint(directory, which)
    others = [path for path in trained if not low_rank.is_matrix(path)]
    if others:
        raise WeightsError(
            f"{directory} trained more than matrices of LoRA, which is all that an "
            f"adapter holds: {shorten(others, 3)}; convert it as a whole"
        )
    sizes = model_config(config.model)
    if config.task == "stage1":
        sizes = dataclasses.replace(sizes, language_model=None)
    bases = config.init.from_weights
    return LoraMatrices(
        sizes, trained, lora.rank, lora.alpha, bases[0] if len(bases) == 1 else ""
    )


class RunArrays(LazyArrays):
    """Parameters of a run: those of a checkpoint, and frozen ones from their sources.

    A frozen parameter is compared with the run's manifest when it is read. Matrices of
    LoRA are merged into their kernel, in the dtype of its source.
    """

    def __init__(
        self,
        trained: Mapping[str, np.ndarray],
        sources: Mapping[str, Mapping[str, np.ndarray]],
        source_of: Mapping[str, str],
        manifest: Manifest,
        scale: float = 0.0,
    ) -> None:
        """Combine the parameters.

        Args:
          trained: trainable and carried parameters by path.
          sources: frozen parameters by path, by name of the source.
          source_of: name of the source by path.
          manifest: of the frozen parameters when the run began.
          scale: factor of the matrices of LoRA, if the run has them.
        """
        paths = [path for path in trained if not low_rank.is_matrix(path)]
        super().__init__([*source_of, *paths])
        self._adapted = set(low_rank.adapted_kernels(trained))
        self._scale = scale
        self._trained, self._sources = trained, sources
        self._source_of, self._manifest = source_of, manifest

    def __getitem__(self, path: str) -> np.ndarray:
        if path in self._trained:
            return self._trained[path]
        source = self._source_of[path]
        arrays = self._sources[source]
        array = arrays[path]
        entry = manifest_entry(arrays, path, array) | {"source": source}
        verify_manifest({path: self._manifest[path]}, {path: entry})
        if path not in self._adapted:
            return array
        a, b = (self._trained[name] for name in low_rank.matrix_paths(path))
        return low_rank.merge_kernel(array, a, b, self._scale)

    def origin(self, path: str) -> Any:
        """Return the manifest entry of a frozen parameter, "run" for others."""
        return "run" if path in self._adapted else self._manifest.get(path, "run")


def _read_trained(
    directory: pathlib.Path,
    which: str | int,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, np.ndarray]:
    """Read trainable and carried parameters of a checkpoint.

    Args:
      directory: of the run.
      which: "best", "last" or a step.
      shapes: of the trainable parameters that the model needs, by path.

    Raises:
      WeightsError: a parameter is missing or has another shape.
    """
    step, params = read_checkpoint(directory, which)
    for path, expected in shapes.items():
        if path not in params or params[path].shape != expected.shape:
            actual = params[path].shape if path in params else "missing"
            raise WeightsError(
                f"{path} is {actual} in checkpoint {step} of {directory}, the model "
                f"needs {expected.shape}"
            )
    return params
