"""Open what a run has trained, to use it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from blip2_jax import sharding
from blip2_jax.data.text import LanguageTokenizer, QFormerTokenizer, load_tokenizer
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.training import config as configuration
from blip2_jax.training import frozen, initialise, partition
from blip2_jax.training.checkpoints import Checkpoints
from blip2_jax.training.setup import read_sources
from blip2_jax.training.tasks import make_task

USABLE = ("stage1", "stage2")


class TrainedRun(NamedTuple):
    """A model, all of its parameters on one device, and how it was talked to.

    Attributes:
      model: fp32 or bf16 as in training, or as asked for.
      params: trained ones in fp32, frozen ones in the model's dtype.
      qformer_tokenizer: None where the run names none.
      language_tokenizer: None in stage 1.
      prompt: what stood before captions.
      question_prompt: the template of questions; "" where the run names none.
      step: of the checkpoint.
    """

    model: Blip2Stage1 | Blip2Stage2
    params: partition.Tree
    qformer_tokenizer: QFormerTokenizer | None
    language_tokenizer: LanguageTokenizer | None
    prompt: str
    question_prompt: str
    step: int


def open_run(
    directory: pathlib.Path, which: str | int = "best", precision: str | None = None
) -> TrainedRun:
    """Read a checkpoint of a run, and its frozen weights where they came from.

    Args:
      directory: the run's `--workdir`.
      which: "best", "last" or a step.
      precision: "float32" or "bfloat16"; None as in training.

    Raises:
      FileNotFoundError: no such directory.
      ConfigError: it holds no run, or one of a task that makes no BLIP-2 model.
      CheckpointError: no such checkpoint, or a damaged one.
      WeightsError: frozen weights are missing, or are not those of the run.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"no directory {str(directory)!r}")
    config = configuration.read_config(directory)
    if config.task not in USABLE:
        raise configuration.ConfigError(
            f"{directory} is a run of task {config.task!r}; a model to use comes from "
            f"{' or '.join(USABLE)}"
        )
    if precision is not None:
        config = _with_precision(config, precision)
    task = make_task(config)
    shapes = initialise.parameter_shapes(config, task)
    step, trained = _trained(config, directory, which, shapes.trainable)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    constants, manifest = initialise.load_frozen_parameters(
        config, task, shapes.frozen, mesh
    )
    frozen.verify(read_sources(directory)["frozen"], manifest)
    tokenizer = config.data.tokenizer
    stage2 = config.task == "stage2"
    return TrainedRun(
        task.model,
        partition.merge(constants, jax.device_put(trained, jax.devices()[0])),
        _tokenizer(tokenizer.qformer, language_model=False),
        _tokenizer(tokenizer.language_model if stage2 else "", language_model=True),
        config.data.prompt or task.model.config.prompt,
        config.data.question_prompt,
        step,
    )


def _with_precision(config: ConfigDict, precision: str) -> ConfigDict:
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.precision = precision
    if precision not in configuration.PRECISIONS:
        raise configuration.ConfigError(
            f"precision {precision!r}: there are {', '.join(configuration.PRECISIONS)}"
        )
    return config


def _trained(
    config: ConfigDict,
    directory: pathlib.Path,
    which: str | int,
    shapes: Mapping[str, Any],
) -> tuple[int, partition.Tree]:
    """Step and trained parameters of a checkpoint, as many as the model needs."""
    checkpoints = Checkpoints(directory, mode=config.evaluation.mode, read_only=True)
    try:
        step = checkpoints.find(which)
        tree = checkpoints.read(step, ("trainable",)).trees["trainable"]
    finally:
        checkpoints.close()
    found, wanted = partition.flatten(tree), partition.flatten(shapes)
    for path, leaf in wanted.items():
        if path not in found or found[path].shape != leaf.shape:
            given = found[path].shape if path in found else "missing"
            raise frozen.WeightsError(
                f"{path} is {given} in checkpoint {step} of {directory}, the model "
                f"needs {leaf.shape}"
            )
    return step, partition.unflatten({path: found[path] for path in wanted})


def _tokenizer(spec: str, *, language_model: bool) -> Any:
    return load_tokenizer(spec, language_model=language_model) if spec else None
