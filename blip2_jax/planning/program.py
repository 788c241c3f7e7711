"""The training step of a configuration on shapes alone: no weights, no data, no device.

The step, its layout and its arguments are made by the code that trains; only the arrays
are `jax.ShapeDtypeStruct`s that know where they would live.
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
from blip2_jax.models import presets
from blip2_jax.parallel import sharding
from blip2_jax.training import train_config as configuration
from blip2_jax.training.setup import design
from blip2_jax.training.state import TrainState
from blip2_jax.training.step import TrainStep
from blip2_jax.training.tasks import Task, compute_dtype, model_config

# Token arrays of a batch by format, apart from stage 1's: the examples' own fields.
_EXAMPLES = {
    "decoder": prompts.DecoderOnlyExample,
    "encoder_decoder": prompts.EncoderDecoderExample,
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step that can be traced, lowered and compiled.

    Attributes:
      config: of the run.
      mesh: of the devices that it is for.
      task: whose loss it lowers.
      step: the very step of `training.setup`.
      state, frozen, batch: its arguments, as shapes with their places.
    """

    config: ConfigDict
    mesh: Mesh
    task: Task
    step: TrainStep
    state: TrainState
    frozen: Any
    batch: dict[str, jax.ShapeDtypeStruct]

    def trace(self) -> Any:
        """The traced step: has `jaxpr` and `lower()`."""
        return self.step.trace(self.state, self.frozen, self.batch, None)


def training_program(config: ConfigDict, devices: Sequence[jax.Device]) -> Program:
    """The step of a configuration on a mesh of these devices.

    Raises:
      ValueError: the configuration cannot run, or its mesh or batch does not fit the
        number of devices.
    """
    made = design(configuration.canonical(config), devices)
    config, shapes = made.config, made.shapes.frozen
    dtype = compute_dtype(config)
    frozen = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place),
        shapes,
        sharding.tree_shardings(shapes, made.mesh),
    )
    batch = batch_shapes(config, made.task, sharding.batch_sharding(made.mesh))
    step = made.train_step(frozen)
    return Program(config, made.mesh, made.task, step, made.state, frozen, batch)


def batch_shapes(
    config: ConfigDict, task: Task, place: NamedSharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch as the data pipeline makes them, texts at full length."""
    rows = config.batch_size

    def shape(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *sizes), dtype, sharding=place)

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
        part, _, what = name.partition("_")
        dtype = jnp.bool_ if what == "mask" else jnp.int32
        batch[name] = shape(dtype, lengths.get(part, length))
    if not task.batch_format.startswith("text_"):
        vision = model_config(config.model).vision
        if isinstance(vision, presets.FeaturesConfig):
            sizes = (vision.num_tokens, vision.width)
            batch["features"] = shape(compute_dtype(config), *sizes)
        else:
            size = config.data.image.size
            batch["image"] = shape(jnp.uint8, size, size, 3)
    return batch
