r"""Trained models that are part of the package, by name.

They were made by the recipes of the demo, on the generated world of coloured shapes:

    blip2-jax demo --workdir runs/demo --only stage1
    blip2-jax demo --workdir runs/demo --only stage2_opt --steps 0.65
    blip2-jax pack_tower --model runs/demo/stage1 --part bridge \
        --out blip2_jax/data/shapes/weights/stage1.safetensors
    blip2-jax pack_tower --model runs/demo/stage2_opt --part bridge \
        --out blip2_jax/data/shapes/weights/stage2_opt.safetensors
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from blip2_jax.convert.model_source import ModelSource
from blip2_jax.models.presets import preset
from blip2_jax.training.frozen import open_weights


@dataclasses.dataclass(frozen=True)
class ShippedModel:
    """A model of the package.

    Attributes:
      sizes: name of its preset.
      trained: its trained weights, for `config.init.from_weights`.
      towers: its frozen weights, for `config.frozen_sources`.
      language_tokenizer: tokenizer of its language model; "" for none.
    """

    sizes: str
    trained: str
    towers: Mapping[str, str]
    language_tokenizer: str = ""


SHIPPED_MODELS = {
    "shapes": ShippedModel(
        "shapes_opt",
        "shapes:stage2_opt",
        {"vision": "shapes:vision", "language_model": "shapes:opt"},
        language_tokenizer="shapes:opt",
    ),
    "shapes_stage1": ShippedModel(
        "shapes", "shapes:stage1", {"vision": "shapes:vision"}
    ),
}


def open_shipped_model(name: str) -> ModelSource:
    """Open a model of the package.

    Args:
      name: one of `SHIPPED_MODELS`.
    """
    shipped = SHIPPED_MODELS[name]
    config = preset(shipped.sizes)
    arrays = {
        path: array
        for spec in (shipped.trained, *shipped.towers.values())
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
