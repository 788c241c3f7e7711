"""CLIP: Hugging Face's `CLIPModel` folders, both towers or the image encoder."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from blip2_jax.convert.converted_arrays import ConvertedArrays, Part
from blip2_jax.convert.declared_model import DeclaredModel, read_sizes
from blip2_jax.convert.declared_sizes import (
    POSITIONS,
    VISION_LAYERS,
    VISION_SIZES_IN_ARRAYS,
)
from blip2_jax.convert.detect import expect_kind
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.folder_tokenizer import own_tokenizer
from blip2_jax.convert.huggingface_config import their_config, vision_sizes
from blip2_jax.convert.huggingface_processor import check_image_processor
from blip2_jax.convert.opened_model import OpenedModel
from blip2_jax.convert.tables import capfilt_settings as settings
from blip2_jax.convert.tables.encoder_settings import image_processor
from blip2_jax.convert.tables.name_table import Rule, linear, norm
from blip2_jax.convert.tables.towers import clip_huggingface_rules, clip_text_rules
from blip2_jax.models.sizes import ACTIVATIONS, ViTConfig
from blip2_jax.models.vision.clip import Clip, ClipConfig
from blip2_jax.models.vision.dual_encoder import TextTowerConfig
from blip2_jax.nn.trees import flatten

DEFAULT_IMAGE_SIZE = 224  # of transformers' `CLIPVisionConfig`
# Buffers 0, 1, 2, ... of older versions of transformers.
BUFFERS = (r"(text|vision)_model\.embeddings\.position_ids",)
_WORDS = "text_model.embeddings.token_embedding.weight"
DECLARED = DeclaredModel(
    model_type="clip",
    name="CLIP",
    config_class="CLIPConfig",
    # Older files declare the sections twice; `*_dict` counts.
    tables={
        "": settings.CLIP,
        "vision_config": settings.CLIP_VISION,
        "text_config": settings.CLIP_TEXT,
        "vision_config_dict": settings.CLIP_VISION,
        "text_config_dict": settings.CLIP_TEXT,
    },
    arrays={
        **VISION_SIZES_IN_ARRAYS,
        "text_config.hidden_size": (_WORDS, 1),
        "text_config.vocab_size": (_WORDS, 0),
        "text_config.max_position_embeddings": (
            "text_model.embeddings.position_embedding.weight",
            0,
        ),
        "text_config.intermediate_size": (
            "text_model.encoder.layers.0.mlp.fc1.weight",
            0,
        ),
        "projection_dim": ("visual_projection.weight", 0),
    },
    layers={
        **VISION_LAYERS,
        "text_config.num_hidden_layers": r"text_model\.encoder\.layers\.(\d+)\.",
    },
    positions=f"{POSITIONS}.weight",
)


def open_clip(source: CheckpointFiles) -> OpenedModel[ClipConfig]:
    """Open a folder of Hugging Face's `CLIPModel`.

    Raises:
      SourceError: it is no CLIP, or this package has no such model.
    """
    expect_kind(source, ("clip_huggingface",), "the similarity of images and texts")
    config = clip_sizes(source)
    check_image_processor(
        source, DEFAULT_IMAGE_SIZE, table=settings.CLIP_IMAGE_PROCESSOR, crops=True
    )
    arrays = ConvertedArrays([Part(source, clip_model_rules(config), BUFFERS)])
    arrays.check(clip_shapes(config))
    return OpenedModel(config, arrays, own_tokenizer(source))


def clip_shapes(config: ClipConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape of every parameter by path, without allocation."""
    size = config.vision.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 2), jnp.bool_)
    init = Clip(config).init
    shapes: Any = jax.eval_shape(init, jax.random.key(0), images, ids, mask)
    return flatten(shapes["params"])


def clip_model_rules(config: ClipConfig) -> list[Rule]:
    """Return the table of transformers' `CLIPModel`."""
    return [
        *clip_huggingface_rules(config.vision, "visual_encoder/"),
        *norm("vision_model.post_layernorm", "vision_norm"),
        *linear("visual_projection", "vision_projection", bias=False),
        *clip_text_rules(config.text, "text_encoder/"),
        *norm("text_model.final_layer_norm", "text_norm"),
        *linear("text_projection", "text_projection", bias=False),
        Rule("logit_scale", "logit_scale"),
    ]


def clip_sizes(source: CheckpointFiles) -> ClipConfig:
    """Read the sizes from the `config.json` of a folder.

    Raises:
      SourceError: there is no such file, it declares something that this package does
        not have, or sizes that the arrays do not have.
    """
    return read_sizes(source, DECLARED, _sizes)


def clip_vision_sizes(theirs: Any) -> ViTConfig:
    """Convert transformers' `CLIPVisionConfig`; see `vision_sizes`."""
    return vision_sizes(theirs, key_bias=True, patch_bias=False, pre_norm=True)


def clip_encoder_sizes(source: CheckpointFiles) -> ViTConfig:
    """Read the sizes of the image encoder from a `config.json`, without its last block.

    Args:
      source: folder of a CLIP or of its image encoder alone.

    Raises:
      SourceError: the folder declares something that this package does not have.
    """
    declared, file = source.config, source.path / "config.json"
    is_pair = "vision_config" in declared or "vision_config_dict" in declared
    theirs = their_config(
        declared, file, DECLARED.config_class if is_pair else "CLIPVisionConfig"
    )
    try:
        sizes = clip_vision_sizes(theirs.vision_config if is_pair else theirs)
    except ValueError as error:
        raise SourceError(f"{file}: {error}") from error
    check_image_processor(source, table=image_processor(sizes.statistics))
    return dataclasses.replace(sizes, depth=sizes.depth - 1)


def _sizes(theirs: Any) -> ClipConfig:
    """Convert transformers' `CLIPConfig`.

    Raises:
      ValueError: this package does not have the variant.
    """
    text = theirs.text_config
    if not isinstance(text.eos_token_id, int):
        raise ValueError(
            f"text_config.eos_token_id is {text.eos_token_id}; expected one id"
        )
    if text.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"text_config.hidden_act is {text.hidden_act!r}; it must be one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    return ClipConfig(
        clip_vision_sizes(theirs.vision_config),
        TextTowerConfig(
            vocab_size=text.vocab_size,
            width=text.hidden_size,
            depth=text.num_hidden_layers,
            heads=text.num_attention_heads,
            mlp_dim=text.intermediate_size,
            max_positions=text.max_position_embeddings,
            layer_norm_eps=text.layer_norm_eps,
            activation=text.hidden_act,
            causal=True,
        ),
        projection_dim=theirs.projection_dim,
        end_id=text.eos_token_id,
    )
