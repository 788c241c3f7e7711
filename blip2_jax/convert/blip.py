"""BLIP's captioner: Hugging Face folders and the files of its authors.

`BlipForConditionalGeneration` and the authors' `.pth` hold the same arrays. The text
decoder has BERT's names in both. The authors name the image encoder like EVA-CLIP's,
transformers like that of its BLIP-2.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from blip2_jax.convert.converted_arrays import ConvertedArrays, part_at_size
from blip2_jax.convert.declared_model import DeclaredModel, read_sizes
from blip2_jax.convert.declared_sizes import (
    POSITIONS,
    VISION_LAYERS,
    VISION_SIZES_IN_ARRAYS,
)
from blip2_jax.convert.detect import expect_kind
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.folder_tokenizer import own_tokenizer
from blip2_jax.convert.huggingface_config import make_part, vision_sizes
from blip2_jax.convert.huggingface_folder import renamed_rule
from blip2_jax.convert.huggingface_processor import check_image_processor
from blip2_jax.convert.opened_model import OpenedModel
from blip2_jax.convert.positions import vision_at_size
from blip2_jax.convert.tables import capfilt_settings as settings
from blip2_jax.convert.tables.lavis import (
    attention_rules,
    feed_forward_rules,
    vocabulary_rules,
)
from blip2_jax.convert.tables.name_table import Rule, norm
from blip2_jax.convert.tables.towers import blip_vit_rules
from blip2_jax.models.blip import Blip
from blip2_jax.models.blip_presets import BLIP_VIT_B, BertDecoderConfig, BlipConfig
from blip2_jax.nn.trees import flatten

DEFAULT_IMAGE_SIZE = 384  # of transformers' `BlipVisionConfig`
# Width of a head in all models of the authors, which their files do not say.
HEAD_WIDTH = 64
# A buffer 0, 1, 2, ...; it holds no parameter.
BUFFERS = (r"text_decoder\.bert\.embeddings\.position_ids",)
_LAYER = "text_decoder.bert.encoder.layer"
_WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
_PLACES = "text_decoder.bert.embeddings.position_embeddings.weight"
DECLARED = DeclaredModel(
    model_type="blip",
    name="BLIP's captioner",
    config_class="BlipConfig",
    tables={
        "": settings.BLIP,
        "vision_config": settings.BLIP_VISION,
        "text_config": settings.BLIP_TEXT,
    },
    arrays={
        **VISION_SIZES_IN_ARRAYS,
        "text_config.hidden_size": (_WORDS, 1),
        "text_config.vocab_size": (_WORDS, 0),
        "text_config.max_position_embeddings": (_PLACES, 0),
        "text_config.intermediate_size": (f"{_LAYER}.0.intermediate.dense.weight", 0),
    },
    layers={
        **VISION_LAYERS,
        "text_config.num_hidden_layers": (
            r"text_decoder\.bert\.encoder\.layer\.(\d+)\."
        ),
    },
    positions=POSITIONS,
)


def open_blip(
    source: CheckpointFiles, image_size: int | None = None
) -> OpenedModel[BlipConfig]:
    """Open a captioner.

    Args:
      source: a folder of Hugging Face or a file of the authors.
      image_size: other than the model's own, in pixels; position embeddings are
        interpolated.

    Raises:
      SourceError: it is no captioner, or this package has no such model.
    """
    expect_kind(source, ("blip",), "a captioner")
    is_huggingface = any(name.startswith("vision_model.") for name in source)
    config = huggingface_sizes(source) if is_huggingface else file_sizes(source)
    if is_huggingface:
        check_image_processor(source, DEFAULT_IMAGE_SIZE)
    if image_size is not None:
        vision = vision_at_size(config.vision, image_size)
        config = dataclasses.replace(config, vision=vision)
    rules = blip_rules(config, huggingface=is_huggingface)
    arrays = ConvertedArrays([part_at_size(source, rules, config.vision, BUFFERS)])
    arrays.check(blip_shapes(config))
    return OpenedModel(config, arrays, own_tokenizer(source))


def blip_shapes(config: BlipConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape of every parameter by path, without allocation."""
    size = config.vision.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes: Any = jax.eval_shape(Blip(config).init, jax.random.key(0), images, ids)
    return flatten(shapes["params"])


def blip_rules(config: BlipConfig, *, huggingface: bool) -> list[Rule]:
    """Return the table of a captioner, with the authors' names or transformers'."""
    vision = blip_vit_rules(config.vision, "visual_encoder.", "visual_encoder/")
    final_norm = "visual_encoder.norm"
    if huggingface:
        vision = [renamed_rule(rule) for rule in vision]
        final_norm = "vision_model.post_layernorm"
    return [*vision, *norm(final_norm, "vision_norm"), *_text_rules(config.text)]


def _text_rules(config: BertDecoderConfig) -> list[Rule]:
    """Return the table of the text decoder."""
    layer, ours, layers = f"{_LAYER}.{{}}", "text_decoder/blocks", range(config.depth)
    embeddings = "text_decoder.bert.embeddings.LayerNorm"
    return [
        *vocabulary_rules("text_decoder.", "text_decoder/"),
        *norm(embeddings, "text_decoder/embeddings/norm"),
        *attention_rules(f"{layer}.attention", f"{ours}/attention", layers, stack=True),
        *attention_rules(
            f"{layer}.crossattention", f"{ours}/cross_attention", layers, stack=True
        ),
        *feed_forward_rules(layer, f"{ours}/mlp", "", layers, stack=True),
    ]


def huggingface_sizes(source: CheckpointFiles) -> BlipConfig:
    """Read the sizes from the `config.json` of a folder.

    Raises:
      SourceError: there is no such file, it declares something that this package does
        not have, or sizes that the arrays do not have.
    """
    return read_sizes(source, DECLARED, _sizes)


def _sizes(theirs: Any) -> BlipConfig:
    """Convert transformers' `BlipConfig`."""
    text = theirs.text_config
    return BlipConfig(
        vision_sizes(theirs.vision_config, key_bias=True),
        make_part(
            BertDecoderConfig,
            "text_config",
            width=text.hidden_size,
            depth=text.num_hidden_layers,
            heads=text.num_attention_heads,
            mlp_dim=text.intermediate_size,
            vocab_size=text.vocab_size,
            max_positions=text.max_position_embeddings,
            layer_norm_eps=text.layer_norm_eps,
            activation=text.hidden_act,
            start_id=text.bos_token_id,
            end_id=text.sep_token_id,
            pad_id=text.pad_token_id,
        ),
    )


def file_sizes(source: CheckpointFiles) -> BlipConfig:
    """Return the sizes of a file of the authors, from the shapes of its arrays.

    All else is as in their code: heads of width 64, epsilons, activations and ids.

    Raises:
      SourceError: an array that the sizes are taken from is missing.
    """
    try:
        tokens, width = source.shape("visual_encoder.pos_embed")[-2:]
        patch = source.shape("visual_encoder.patch_embed.proj.weight")[-1]
        mlp_dim = source.shape("visual_encoder.blocks.0.mlp.fc1.weight")[0]
        words, text_width = source.shape(_WORDS)
        text_mlp_dim = source.shape(f"{_LAYER}.0.intermediate.dense.weight")[0]
        positions = source.shape(_PLACES)[0]
    except (KeyError, ValueError, IndexError) as error:
        raise SourceError(
            f"{source.name} lacks an array of BLIP's captioner, or it has another "
            f"form: {error}"
        ) from error
    try:
        return BlipConfig(
            dataclasses.replace(
                BLIP_VIT_B,
                width=width,
                depth=_depth(source, "visual_encoder.blocks."),
                heads=width // HEAD_WIDTH,
                mlp_dim=mlp_dim,
                image_size=math.isqrt(tokens - 1) * patch,
                patch_size=patch,
            ),
            BertDecoderConfig(
                width=text_width,
                depth=_depth(source, f"{_LAYER}."),
                heads=text_width // HEAD_WIDTH,
                mlp_dim=text_mlp_dim,
                vocab_size=words,
                max_positions=positions,
                start_id=words - 2,  # [DEC] and [ENC] are the last two words
            ),
        )
    except ValueError as error:
        raise SourceError(f"{source.name}: {error}") from error


def _depth(source: CheckpointFiles, prefix: str) -> int:
    """Count the blocks whose arrays begin with `prefix` and a number."""
    return len(
        {
            name.removeprefix(prefix).partition(".")[0]
            for name in source
            if name.startswith(prefix)
        }
    )
