"""Hugging Face folders of SigLIP and DINOv2: their sizes and their arrays.

SigLIP 2 of a fixed resolution has the classes of SigLIP. The sizes come from
`config.json`, of which every setting is used, refused by name or without effect. A file
without a `config.json` is read by the sizes of the model that it becomes part of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from blip2_jax.convert.converted_arrays import Part, part_at_size
from blip2_jax.convert.declared_sizes import (
    check_image_size,
    compare_sizes,
    layer_numbers,
)
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.huggingface_config import (
    check_tables,
    their_config,
    vision_sizes,
)
from blip2_jax.convert.huggingface_processor import check_image_processor
from blip2_jax.convert.tables import encoder_settings as settings
from blip2_jax.convert.tables import encoders
from blip2_jax.convert.tables.huggingface_settings import Settings
from blip2_jax.models.presets import DINOV2, SIGLIP
from blip2_jax.models.sizes import ViTConfig

# Sizes that a model may choose: positions are interpolated, and it may stop earlier.
CHOSEN = ("image_size", "depth", "final_norm")
Arrays = Mapping[str, tuple[str, int]]


@dataclasses.dataclass(frozen=True)
class EncoderFormat:
    """What a folder is compared with, by the `model_type` of its `config.json`.

    Attributes:
      config_class: name of its configuration in transformers.
      tables: see `check_tables`.
      convert: converts the settings of the image encoder; may raise ValueError.
      arrays: see `compare_sizes`; settings and arrays without their prefixes.
      layers: pattern of an array of one layer, with the layer's number.
      positions: name of the position embeddings.
      section: section of the image encoder's settings; "" is the top level.
    """

    config_class: str
    tables: Mapping[str, Settings]
    convert: Callable[[Any], ViTConfig]
    arrays: Arrays
    layers: str
    positions: str
    section: str = ""


def _siglip_sizes(theirs: Any) -> ViTConfig:
    """Convert transformers' `SiglipVisionConfig`."""
    return vision_sizes(theirs, **SIGLIP)


def _dinov2_sizes(theirs: Any) -> ViTConfig:
    """Convert transformers' `Dinov2Config` or `Dinov2WithRegistersConfig`.

    SwiGLU has two thirds of the width, rounded up to a multiple of 8, and always SiLU.
    """
    mlp_dim, gated = int(theirs.hidden_size * theirs.mlp_ratio), theirs.use_swiglu_ffn
    if gated:
        mlp_dim = (int(mlp_dim * 2 / 3) + 7) // 8 * 8
    return ViTConfig(
        width=theirs.hidden_size,
        depth=theirs.num_hidden_layers,
        heads=theirs.num_attention_heads,
        mlp_dim=mlp_dim,
        image_size=theirs.image_size,
        patch_size=theirs.patch_size,
        activation="silu" if gated else theirs.hidden_act,
        layer_norm_eps=theirs.layer_norm_eps,
        gated_mlp=gated,
        num_registers=getattr(theirs, "num_register_tokens", 0),
        **DINOV2,
    )


_SIGLIP = EncoderFormat(
    config_class="SiglipConfig",
    tables={"": settings.SIGLIP, "vision_config": settings.SIGLIP_VISION},
    convert=_siglip_sizes,
    arrays={
        "hidden_size": ("embeddings.patch_embedding.weight", 0),
        "patch_size": ("embeddings.patch_embedding.weight", -1),
        "intermediate_size": ("encoder.layers.0.mlp.fc1.weight", 0),
    },
    layers=r"(?:vision_model\.)?encoder\.layers\.(\d+)\.",
    positions="embeddings.position_embedding.weight",
    section="vision_config",
)
_DINOV2 = EncoderFormat(
    config_class="Dinov2Config",
    tables={"": settings.DINOV2},
    convert=_dinov2_sizes,
    arrays={
        "hidden_size": ("embeddings.cls_token", -1),
        "patch_size": ("embeddings.patch_embeddings.projection.weight", -1),
    },
    layers=r"(?:dinov2\w*\.)?encoder\.layer\.(\d+)\.",
    positions="embeddings.position_embeddings",
)
FORMATS = {
    "siglip": _SIGLIP,
    "siglip_vision_model": dataclasses.replace(
        _SIGLIP,
        config_class="SiglipVisionConfig",
        tables={"": settings.SIGLIP_VISION},
        section="",
    ),
    "dinov2": _DINOV2,
    "dinov2_with_registers": dataclasses.replace(
        _DINOV2,
        config_class="Dinov2WithRegistersConfig",
        tables={"": settings.DINOV2_WITH_REGISTERS},
        arrays={
            **_DINOV2.arrays,
            "num_register_tokens": ("embeddings.register_tokens", -2),
        },
    ),
}


def encoder_sizes(source: CheckpointFiles) -> ViTConfig:
    """Read the sizes of an image encoder from the `config.json` of its folder.

    Raises:
      SourceError: there is no such file, it declares something that this package does
        not have, or sizes that the arrays do not have.
    """
    declared, file = source.config, source.path / "config.json"
    form = FORMATS.get(str(declared.get("model_type")))
    if form is None:
        content = f"{declared.get('model_type')!r}" if declared else "no config.json"
        raise SourceError(
            f"{source.name}: a folder of SigLIP or DINOv2 has a config.json with "
            f"model_type {' or '.join(map(repr, FORMATS))}; this one has {content}"
        )
    check_tables(declared, file, form.tables)
    theirs = their_config(declared, file, form.config_class)
    try:
        sizes = form.convert(getattr(theirs, form.section) if form.section else theirs)
    except ValueError as error:
        raise SourceError(f"{file}: {error}") from error
    _compare_with_arrays(theirs, source, form, sizes.class_token)
    check_image_processor(source, table=settings.image_processor(sizes.statistics))
    return sizes


def _compare_with_arrays(
    theirs: Any, source: CheckpointFiles, form: EncoderFormat, class_token: bool
) -> None:
    """Compare declared sizes with the arrays; see `compare_sizes`."""
    prefix = encoders.encoder_prefix(source)
    section = form.section and f"{form.section}."
    arrays = {
        section + name: (prefix + array, axis)
        for name, (array, axis) in form.arrays.items()
    }
    layers = {f"{section}num_hidden_layers": form.layers}
    compare_sizes(theirs, source, arrays, layers)
    check_image_size(
        getattr(theirs, form.section) if section else theirs,
        source,
        prefix + form.positions,
        section=section,
        class_token=class_token,
    )


def encoder_part(source: CheckpointFiles, config: ViTConfig) -> Part:
    """Return an image encoder of SigLIP or DINOv2 with the table that reads it.

    A model may use fewer blocks than the encoder has, and none of its final norm.

    Raises:
      SourceError: the folder declares another encoder than `config`.
    """
    if source.config:
        _compare_with_model(source, config)
    target, layers = "visual_encoder/", _DINOV2.layers
    prefix = encoders.encoder_prefix(source)
    leftovers: tuple[str, ...]
    if config.family == "DINOv2":
        rules = encoders.dinov2_rules(config, prefix, target)
        leftovers = encoders.DINOV2_LEFTOVERS
    else:
        rules = encoders.siglip_rules(config, prefix, target)
        leftovers, layers = encoders.SIGLIP_LEFTOVERS, _SIGLIP.layers
    unused = sorted(n for n in layer_numbers(source, layers) if n >= config.depth)
    patterns = [layers.replace(r"(\d+)", str(number)) + ".*" for number in unused]
    return part_at_size(source, rules, config, (*leftovers, *patterns))


def _compare_with_model(source: CheckpointFiles, config: ViTConfig) -> None:
    """Compare the declared sizes with those of a model, but for `CHOSEN`."""
    own = encoder_sizes(source)
    for field in dataclasses.fields(config):
        declared, value = getattr(own, field.name), getattr(config, field.name)
        if field.name not in CHOSEN and declared != value:
            raise SourceError(
                f"{source.name} is an encoder with {field.name} {declared!r}, the "
                f"model has {value!r}"
            )
