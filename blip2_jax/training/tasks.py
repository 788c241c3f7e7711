"""What a run computes: a model, its loss and the batches that it eats.

A task is built from a configuration by name. Everything else in training (step, loop,
checkpoints) sees this one interface.
"""

from __future__ import annotations

import dataclasses
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
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.language.interface import build_language_model
from blip2_jax.models.vision.contrastive_pair import ContrastModel, TextTowerConfig
from blip2_jax.models.vision.contrastive_pair import init_params as init_contrast

Params = Mapping[str, Any]
Batch = Mapping[str, Any]


class Loss(Protocol):
    """A training loss: a mean over the global batch, of all parameters."""

    def __call__(
        self, params: Params, batch: Batch, key: jax.Array | None, replay: Any = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Compute the loss and what to report.

        Args:
          params: trainable and frozen parameters, merged.
          batch: global arrays.
          key: of dropout and of sampled negatives; None: neither dropout nor draws.
          replay: negatives to use in place of drawn ones.

        Returns:
          The fp32 scalar loss, and fp32 scalars by name; stage 1 adds `negatives`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """One kind of training.

    Attributes:
      name: key of `TASKS`.
      model: the flax module; evaluation and generation use it too.
      init_params: random parameters from a key; works under `jax.eval_shape`.
      loss: see `Loss`.
      batch_format: which examples the data pipeline makes: "image_text" (stage 1,
        contrast), "decoder", "encoder_decoder", "text_decoder" or
        "text_encoder_decoder" (the latter two without images).
      tokenizers: keys of `config.data.tokenizer` that these examples need.
      gradients: how a step takes its batch in chunks; None: at once.
    """

    name: str
    model: Any
    init_params: Callable[[jax.Array], dict[str, Any]]
    loss: Loss
    batch_format: BatchFormat
    tokenizers: tuple[str, ...]
    gradients: Gradients | None = None


def make_task(config: ConfigDict) -> Task:
    """The task that a configuration names.

    Raises:
      ValueError: an unknown task, model size or option; the message names it.
    """
    if config.task not in TASKS:
        raise ValueError(f"unknown task {config.task!r}; there are {', '.join(TASKS)}")
    return TASKS[config.task](config)


def compute_dtype(config: ConfigDict) -> Any:
    """The dtype of matmul inputs, and of frozen parameters."""
    return jnp.dtype(config.precision)


def model_config(options: ConfigDict) -> presets.Blip2Config:
    """The preset that `config.model` names, with its overrides.

    Overrides follow the fields of `Blip2Config`: `{"qformer": {"depth": 4}}`. A part
    that the preset lacks, or another kind of part, says its kind and is complete:
    `{"vision": {"kind": "features", "num_tokens": 49, "width": 1280}}`.

    Raises:
      ValueError: no such preset or field.
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
    """A changed part of a model, or a new one of the kind that `changes` names."""
    kind = changes.pop("kind", None)
    if kind is None:
        if present is None:
            raise ValueError(f"{path} must say its kind: {', '.join(presets.PARTS)}")
        return _override(present, changes.items(), path)
    if kind not in presets.PARTS:
        known = ", ".join(presets.PARTS)
        raise ValueError(f"{path}.kind is {kind!r}; there are {known}")
    return from_options(presets.PARTS[kind], changes, path)


def _options(kind: type, options: ConfigDict) -> Any:
    """`config.objective` as the task's dataclass of options."""
    return _override(kind(), options.items(), "config.objective")


def _stage1(config: ConfigDict) -> Task:
    model = Blip2Stage1(model_config(config.model), **module_kwargs(config))
    options = _options(Stage1Options, config.objective)
    init = lambda key: init_params(model, key)
    count = config.optimizer.accumulate
    check_options(
        count,
        itm_every=options.itm_every,
        itg_every=options.itg_every,
        num_shards=options.num_shards,
    )
    if count > 1:
        check_encoder(count, init, config.frozen)
    return Task(
        name="stage1",
        model=model,
        init_params=init,
        loss=lambda params, batch, key, replay=None: stage1_loss(
            model, params, batch, key, options, replay
        ),
        batch_format="image_text",
        tokenizers=("qformer",),
        gradients=stage1_in_chunks(model, options, count) if count > 1 else None,
    )


def _stage2(config: ConfigDict) -> Task:
    sizes = model_config(config.model)
    family = _family(_language_sizes(sizes))
    asks_qformer = config.model.get("question_in_qformer", False)  # not in old runs
    model = Blip2Stage2(
        sizes, **module_kwargs(config), question_in_qformer=asks_qformer
    )
    options = _options(Stage2Options, config.objective)
    check_options(config.optimizer.accumulate, num_shards=options.num_shards)

    def loss(params: Params, batch: Batch, key: Any, replay: Any = None) -> Any:
        return stage2_loss(model, params, batch, key, options)

    return Task(
        name="stage2",
        model=model,
        init_params=lambda key: init_params(model, key),
        loss=loss,
        batch_format=question_format(family) if asks_qformer else family,
        tokenizers=(*(("qformer",) if asks_qformer else ()), "language_model"),
        gradients=_chunked_mean(config, loss, options.mean_over),
    )


def _contrast(config: ConfigDict) -> Task:
    """An image tower, to be frozen later, learns from captions."""
    sizes = model_config(config.model)
    options = _options(ContrastOptions, config.objective)
    if not isinstance(sizes.vision, presets.ViTConfig):
        raise ValueError("the contrast task trains an image tower, not features")
    if config.optimizer.accumulate > 1:
        raise ValueError(
            f"config.optimizer.accumulate is {config.optimizer.accumulate}; the "
            "contrast task takes its batch at once: it must be 1"
        )
    text = TextTowerConfig(
        vocab_size=sizes.qformer.vocab_size,
        width=options.text_width,
        depth=options.text_depth,
        heads=options.text_heads,
        mlp_dim=2 * options.text_width,
        window=options.text_window,
    )
    model = ContrastModel(
        sizes.vision, text, options.projection_dim, **module_kwargs(config)
    )
    return Task(
        name="contrast",
        model=model,
        init_params=lambda key: init_contrast(model, key, options.initial_std),
        loss=lambda params, batch, key, replay=None: contrast_loss(
            model, params, batch, options
        ),
        batch_format="image_text",
        tokenizers=("qformer",),
    )


def _language_model(config: ConfigDict) -> Task:
    """A language model, to be frozen later, learns from text alone."""
    sizes = _language_sizes(model_config(config.model))
    decoder_only = _family(sizes) == "decoder"
    model = build_language_model(sizes, **module_kwargs(config))
    options = _options(LanguageModelOptions, config.objective)

    def init(key: jax.Array) -> dict[str, Any]:
        ids, mask = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool)
        batch = dict.fromkeys(("text_ids", "input_ids", "target_ids"), ids)
        batch |= dict.fromkeys(("text_mask", "input_mask", "target_mask"), mask)
        variables = model.init(key, None, batch, method=model.training_logits)
        params = initial_language_model(variables["params"], sizes, options.initial_std)
        return {"language_model": params}

    def loss(params: Params, batch: Batch, key: Any, replay: Any = None) -> Any:
        return language_loss(model, params, batch, key)

    return Task(
        name="language_model",
        model=model,
        init_params=init,
        loss=loss,
        batch_format="text_decoder" if decoder_only else "text_encoder_decoder",
        tokenizers=("language_model",),
        gradients=_chunked_mean(config, loss, "tokens"),
    )


def _chunked_mean(config: ConfigDict, loss: Loss, weight: str) -> Gradients | None:
    """How a loss that is a mean over `weight` takes the chunks that are asked for."""
    count = config.optimizer.accumulate
    return mean_in_chunks(loss, count, weight) if count > 1 else None


def module_kwargs(config: ConfigDict) -> dict[str, Any]:
    """What every module takes beside its sizes."""
    return {
        "dtype": compute_dtype(config),
        "scan": config.model.scan,
        "remat": config.model.remat,
    }


def _language_sizes(sizes: presets.Blip2Config) -> presets.LanguageModelConfig:
    """The language model of a configuration that must have one."""
    if sizes.language_model is None:
        raise ValueError(
            "this task needs a language model: choose a preset that has one, or set "
            "config.model.overrides.language_model"
        )
    return sizes.language_model


def _family(language: presets.LanguageModelConfig) -> BatchFormat:
    """The batch format of a language model's family."""
    is_decoder = isinstance(language, presets.OPTConfig)
    return "decoder" if is_decoder else "encoder_decoder"


TASKS: dict[str, Callable[[ConfigDict], Task]] = {
    "stage1": _stage1,
    "stage2": _stage2,
    "contrast": _contrast,
    "language_model": _language_model,
}
