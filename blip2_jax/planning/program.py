"""The training step of a configuration on abstract arrays.

The code that trains also builds the step, its shardings and its arguments here; only
the arrays are `jax.ShapeDtypeStruct`s. No weights, data or devices are needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from blip2_jax.data.data_config import format_family
from blip2_jax.data.text import prompts
from blip2_jax.models.sizes import FeaturesConfig
from blip2_jax.parallel import sharding
from blip2_jax.training import train_config as configuration
from blip2_jax.training.initial_params import frozen_shapes
from blip2_jax.training.state import TrainState
from blip2_jax.training.step import TrainStep
from blip2_jax.training.step_plan import plan_step
from blip2_jax.training.tasks import Task, compute_dtype, model_config

# Token arrays of a batch are the fields of these classes; stage 1 has its own.
_EXAMPLES = {
    "decoder": prompts.DecoderOnlyExample,
    "encoder_decoder": prompts.EncoderDecoderExample,
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step that can be traced, lowered and compiled.

    Attributes:
      config: configuration of the run.
      mesh: device mesh that the step is compiled for.
      task: task of the run.
      step: training step that `training.setup` builds.
      state: abstract train state with shardings.
      frozen: abstract frozen parameters with shardings.
      batch: abstract batch with shardings.
    """

    config: ConfigDict
    mesh: Mesh
    task: Task
    step: TrainStep
    state: TrainState
    frozen: Any
    batch: dict[str, jax.ShapeDtypeStruct]

    def trace(self) -> Any:
        """Trace the step; the result has `jaxpr` and `lower()`."""
        return self.step.trace(self.state, self.frozen, self.batch, None)


def training_program(config: ConfigDict, devices: Sequence[jax.Device]) -> Program:
    """Build the training step of a configuration on a mesh of devices.

    Raises:
      ValueError: the configuration is invalid, or its mesh or batch does not match the
        number of devices.
    """
    made = plan_step(configuration.canonical(config), devices)
    config, shapes = made.config, made.shapes.frozen
    frozen = frozen_shapes(config, shapes)
    frozen = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        frozen,
        sharding.tree_shardings(frozen, made.mesh),
    )
    batch = batch_shapes(config, made.task, sharding.batch_sharding(made.mesh))
    step = made.train_step(frozen)
    return Program(config, made.mesh, made.task, step, made.state, frozen, batch)


def batch_shapes(
    config: ConfigDict, task: Task, row_sharding: NamedSharding | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Build the abstract batch of the data pipeline, with texts at full length."""
    rows = config.batch_size

    def shape(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *sizes), dtype, sharding=row_sharding)

    batch = {"image_id": shape(jnp.int32)}
    family = format_family(task.batch_format)
    names = ["text_ids", "text_mask"]
    if family in _EXAMPLES:
        names = [field.name for field in dataclasses.fields(_EXAMPLES[family])]
    if task.batch_format.startswith("question_"):
        names += ["question_ids", "question_mask"]
    length = config.data.max_text_length
    lengths = {"target": length}
    if family == "encoder_decoder":
        lengths["target"] = config.data.max_target_length or length
    for name in names:
        part, _, suffix = name.partition("_")
        dtype = jnp.bool_ if suffix == "mask" else jnp.int32
        batch[name] = shape(dtype, lengths.get(part, length))
    if not task.batch_format.startswith("text_"):
        vision = model_config(config.model).vision
        if isinstance(vision, FeaturesConfig):
            sizes = (vision.num_tokens, vision.width)
            batch["features"] = shape(compute_dtype(config), *sizes)
        else:
            size = config.data.image.size
            batch["image"] = shape(jnp.uint8, size, size, 3)
    return batch
