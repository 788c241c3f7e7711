"""Training tasks: a model, its loss and the format of its batches.

A task is built from a configuration by name. The step, the loop and the checkpoints use
this one interface.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from blip2_jax.data.data_config import BatchFormat, question_format
from blip2_jax.data.dataclass_options import from_options, replace_options
from blip2_jax.losses.chunks import Gradients, check_options, mean_in_chunks
from blip2_jax.losses.image_text_contrast import ContrastOptions, contrast_loss
from blip2_jax.losses.language_model import (
    LanguageModelOptions,
    initial_language_model,
    language_loss,
)
from blip2_jax.losses.stage1 import Stage1Options, stage1_loss
from blip2_jax.losses.stage1_chunks import check_encoder, stage1_in_chunks
from blip2_jax.losses.stage2 import Stage2Options, stage2_loss
from blip2_jax.models import presets
from blip2_jax.models.blip2 import Blip2Base, init_params, parameter_shapes
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.language.interface import build_language_model
from blip2_jax.models.sizes import LanguageModelConfig, ViTConfig
from blip2_jax.models.vision.dual_encoder import (
    DualEncoder,
    TextTowerConfig,
    init_dual_encoder,
)
from blip2_jax.nn.low_rank import with_low_rank
from blip2_jax.nn.trees import flatten
from blip2_jax.training.lora import lora_of, split_parameters

Params = Mapping[str, Any]
Batch = Mapping[str, Any]


class Loss(Protocol):
    """A training loss: a mean over the global batch."""

    def __call__(
        self, params: Params, batch: Batch, key: jax.Array | None, negatives: Any = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Compute the loss and its metrics.

        Args:
          params: trainable and frozen parameters, merged.
          batch: global arrays.
          key: key for dropout and sampled negatives. None disables dropout and samples
            negatives from a fixed key.
          negatives: negatives of an earlier run, used instead of sampled ones.

        Returns:
          The fp32 scalar loss, and metrics by name: fp32 scalars and, in stage 1, the
          sampled `negatives`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """A kind of training.

    Attributes:
      name: key of `TASKS`.
      model: the Flax module; evaluation and generation use it too.
      init_params: creates random parameters from a key; works under `jax.eval_shape`.
      loss: the loss function.
      batch_format: format of the examples that the data pipeline makes: "image_text"
        (stage 1, contrast), "decoder", "encoder_decoder", "text_decoder" or
        "text_encoder_decoder" (the last two without images).
      tokenizers: keys of `config.data.tokenizer` that the examples need.
      gradients: computes loss and gradient in chunks; None processes the batch at once.
    """

    name: str
    model: Any
    init_params: Callable[[jax.Array], dict[str, Any]]
    loss: Loss
    batch_format: BatchFormat
    tokenizers: tuple[str, ...]
    gradients: Gradients | None = None

    def parameter_shapes(self) -> Params:
        """Return the shape of every parameter, without allocation."""
        if isinstance(self.model, Blip2Base):
            return parameter_shapes(self.model)  # traced once per model
        return jax.eval_shape(self.init_params, jax.random.key(0))


def make_task(config: ConfigDict) -> Task:
    """Build the task of a configuration.

    Raises:
      ValueError: the task, a model size or an option is unknown; the message names it.
    """
    if config.task not in TASKS:
        raise ValueError(f"unknown task {config.task!r}; there are {', '.join(TASKS)}")
    task, lora = TASKS[config.task](config), lora_of(config)
    if lora is None:
        return task
    return dataclasses.replace(
        task,
        loss=with_low_rank(task.loss, lora.scale),
        gradients=task.gradients and with_low_rank(task.gradients, lora.scale),
    )


def compute_dtype(config: ConfigDict) -> Any:
    """Return the dtype of matmul inputs and of frozen parameters."""
    return jnp.dtype(config.precision)


def model_config(options: ConfigDict) -> presets.Blip2Config:
    """Return the sizes of `config.model`: a preset with overrides.

    Overrides follow the fields of `Blip2Config`: `{"qformer": {"depth": 4}}`. A part
    that the preset lacks, or a part of another kind, needs its kind and all its fields:
    `{"vision": {"kind": "features", "num_tokens": 49, "width": 1280}}`. The kind of an
    image encoder may be its name in `presets.ENCODERS`:
    `{"vision": {"kind": "dinov2_base", "image_size": 224}}`.

    Raises:
      ValueError: the preset or a field is unknown.
    """
    try:
        base = presets.preset(options.preset)
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    return _override(base, options.overrides.items(), "config.model.overrides")


def _override(base: Any, changes: Any, where: str) -> Any:
    """`dataclasses.replace`, nested; errors name the path of the key."""
    values = {}
    for name, value in changes:
        path = f"{where}.{name}"
        if hasattr(base, name) and isinstance(value, (Mapping, ConfigDict)):
            value = _part(getattr(base, name), dict(value.items()), path)
        values[name] = value
    return replace_options(base, values, where)


def _part(present: Any, changes: dict[str, Any], path: str) -> Any:
    """Return a changed part of a model, or a new one if `changes` names a kind."""
    kind = changes.pop("kind", None)
    if kind in presets.ENCODERS:
        return replace_options(presets.ENCODERS[kind], changes, path)
    if kind is None:
        if present is None:
            raise ValueError(f"{path} must say its kind: {', '.join(presets.PARTS)}")
        return _override(present, changes.items(), path)
    if kind not in presets.PARTS:
        known = ", ".join([*presets.PARTS, *presets.ENCODERS])
        raise ValueError(f"{path}.kind is {kind!r}; there are {known}")
    return from_options(presets.PARTS[kind], changes, path)


def _options(kind: type, options: ConfigDict) -> Any:
    """`config.objective` as the task's dataclass of options."""
    return _override(kind(), options.items(), "config.objective")


def _stage1(config: ConfigDict) -> Task:
    """Build the task of stage 1."""
    sizes = model_config(config.model)
    if sizes.projector is not None:
        raise ValueError(
            "stage 1 trains the Q-Former, but config.model.overrides.projector "
            "replaces it; a projector is trained by the task stage2"
        )
    model = Blip2Stage1(sizes, **module_kwargs(config))
    options = _options(Stage1Options, config.objective)
    count = config.optimizer.accumulate
    check_options(
        count,
        itm_every=options.itm_every,
        itg_every=options.itg_every,
        num_shards=options.num_shards,
    )
    if count > 1:
        trained = split_parameters(config, parameter_shapes(model)).trainable
        check_encoder(count, flatten(trained))
    return Task(
        name="stage1",
        model=model,
        init_params=functools.partial(init_params, model),
        loss=functools.partial(stage1_loss, model, options=options),
        batch_format="image_text",
        tokenizers=("qformer",),
        gradients=stage1_in_chunks(model, options, count) if count > 1 else None,
    )


def _stage2(config: ConfigDict) -> Task:
    """Build the task of stage 2 and of its fine-tunes."""
    sizes = model_config(config.model)
    family = _family(_language_sizes(sizes))
    # Runs of earlier versions lack the key.
    question_in_qformer = config.model.get("question_in_qformer", False)
    model = Blip2Stage2(
        sizes, **module_kwargs(config), question_in_qformer=question_in_qformer
    )
    options = _options(Stage2Options, config.objective)
    check_options(config.optimizer.accumulate, num_shards=options.num_shards)

    def loss(params: Params, batch: Batch, key: Any, negatives: Any = None) -> Any:
        return stage2_loss(model, params, batch, key, options)

    return Task(
        name="stage2",
        model=model,
        init_params=functools.partial(init_params, model),
        loss=loss,
        batch_format=question_format(family) if question_in_qformer else family,
        tokenizers=(
            *(("qformer",) if question_in_qformer else ()),
            "language_model",
        ),
        gradients=_chunked_mean(config, loss, options.mean_over),
    )


def _contrast(config: ConfigDict) -> Task:
    """Build the task that trains an image encoder on captions, to be frozen later."""
    sizes = model_config(config.model)
    options = _options(ContrastOptions, config.objective)
    if not isinstance(sizes.vision, ViTConfig):
        raise ValueError(
            "the contrast task trains an image encoder; config.model.overrides.vision "
            "is of kind 'features'"
        )
    if config.optimizer.accumulate > 1:
        raise ValueError(
            f"config.optimizer.accumulate is {config.optimizer.accumulate}; it must be "
            "1 for the contrast task, which does not support chunks"
        )
    text = TextTowerConfig(
        vocab_size=sizes.qformer.vocab_size,
        width=options.text_width,
        depth=options.text_depth,
        heads=options.text_heads,
        mlp_dim=2 * options.text_width,
        window=options.text_window,
    )
    model = DualEncoder(
        sizes.vision, text, options.projection_dim, **module_kwargs(config)
    )
    return Task(
        name="contrast",
        model=model,
        init_params=lambda key: init_dual_encoder(model, key, options.initial_std),
        loss=lambda params, batch, key, negatives=None: contrast_loss(
            model, params, batch, options
        ),
        batch_format="image_text",
        tokenizers=("qformer",),
    )


def _language_model(config: ConfigDict) -> Task:
    """Build the task that trains a language model on text, to be frozen later."""
    sizes = _language_sizes(model_config(config.model))
    model = build_language_model(sizes, **module_kwargs(config))
    options = _options(LanguageModelOptions, config.objective)

    def init(key: jax.Array) -> dict[str, Any]:
        ids, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
        batch = dict.fromkeys(("text_ids", "input_ids", "target_ids"), ids)
        batch |= dict.fromkeys(("text_mask", "input_mask", "target_mask"), mask)
        variables = model.init(key, None, batch, method=model.training_logits)
        params = initial_language_model(variables["params"], sizes, options.initial_std)
        return {"language_model": params}

    def loss(params: Params, batch: Batch, key: Any, negatives: Any = None) -> Any:
        return language_loss(model, params, batch, key)

    return Task(
        name="language_model",
        model=model,
        init_params=init,
        loss=loss,
        batch_format=(
            "text_encoder_decoder" if sizes.is_encoder_decoder else "text_decoder"
        ),
        tokenizers=("language_model",),
        gradients=_chunked_mean(config, loss, "tokens"),
    )


def _chunked_mean(config: ConfigDict, loss: Loss, weight: str) -> Gradients | None:
    """Return chunked gradients of a loss that is a mean over `weight`; None for 1."""
    count = config.optimizer.accumulate
    return mean_in_chunks(loss, count, weight) if count > 1 else None


def module_kwargs(config: ConfigDict) -> dict[str, Any]:
    """Return the keyword arguments that every module takes besides its sizes."""
    return {
        "dtype": compute_dtype(config),
        "scan": config.model.scan,
        "remat": config.model.remat,
    }


def _language_sizes(sizes: presets.Blip2Config) -> LanguageModelConfig:
    """Return the sizes of the language model, which the task requires."""
    if sizes.language_model is None:
        raise ValueError(
            "this task needs a language model: choose a preset that has one, or set "
            "config.model.overrides.language_model"
        )
    return sizes.language_model


def _family(language: LanguageModelConfig) -> BatchFormat:
    """Return the batch format of a language model."""
    return "encoder_decoder" if language.is_encoder_decoder else "decoder"


TASKS: dict[str, Callable[[ConfigDict], Task]] = {
    "stage1": _stage1,
    "stage2": _stage2,
    "contrast": _contrast,
    "language_model": _language_model,
}
