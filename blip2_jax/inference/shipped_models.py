"""Trained models that are part of the package, by name.

They are those of `blip2-jax demo`: trained on the generated world of coloured shapes
(`blip2_jax.data.shapes`). `blip2-jax pack_tower --part trained` writes their files.
"""

from __future__ import annotations

import dataclasses

from blip2_jax.convert.model_source import ModelSource
from blip2_jax.models.presets import preset
from blip2_jax.training.frozen import open_weights


@dataclasses.dataclass(frozen=True)
class _ShippedModel:
    """A model of the package.

    Attributes:
      sizes: name of its preset.
      weights: specs of its weights, as in `config.frozen_sources`.
      language_tokenizer: tokenizer of its language model; "" for none.
    """

    sizes: str
    weights: tuple[str, ...]
    language_tokenizer: str = ""


_MODELS = {
    "shapes": _ShippedModel(
        "shapes_opt", ("shapes:stage2_opt", "shapes:vision", "shapes:opt"), "shapes:opt"
    ),
    "shapes_stage1": _ShippedModel("shapes", ("shapes:stage1", "shapes:vision")),
}
SHIPPED_MODELS = tuple(_MODELS)


def open_shipped_model(name: str) -> ModelSource:
    """Open a model of the package.

    Args:
      name: one of `SHIPPED_MODELS`.
    """
    shipped = _MODELS[name]
    config = preset(shipped.sizes)
    arrays = {
        path: array
        for spec in shipped.weights
        for path, array in open_weights(spec, config).items()
    }
    return ModelSource(
        config,
        arrays,
        "shipped",
        qformer_tokenizer="shapes:bert",
        language_tokenizer=shipped.language_tokenizer,
        question_prompt="{}" if shipped.language_tokenizer else "",
    )
