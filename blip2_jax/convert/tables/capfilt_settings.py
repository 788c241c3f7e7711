"""What this package makes of every setting of BLIP's captioner and of CLIP.

See `huggingface_settings`, which has the rules and the settings of every class.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from blip2_jax.convert.tables.huggingface_settings import (
    IMAGE_PROCESSOR,
    INITIAL,
    Settings,
)

TRAINING = "for training; these models are not trained here"
UNUSED_HEAD = "for a head that the captioner does not contain"
TOKENIZER = "the tokenizer's counts"
NO_TOKENS = "the image encoder reads no tokens"
NO_TEXT = {
    "is_encoder_decoder": "the image encoder has no decoder",
    "tie_word_embeddings": "the image encoder has no token table",
    "bos_token_id": NO_TOKENS,
    "eos_token_id": NO_TOKENS,
    "pad_token_id": NO_TOKENS,
    "decoder_start_token_id": NO_TOKENS,
}
_BELOW: dict[str, str] = dict.fromkeys(
    ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    "the one in `text_config` counts",
)
_VISION_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
_TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
)
_ONE_STACK: dict[str, tuple[Any, ...]] = {"is_encoder_decoder": (False,)}

BLIP = Settings(
    used=("vision_config", "text_config", "model_type"),
    fixed={"tie_word_embeddings": (True,), **_ONE_STACK},
    without_effect={
        "image_text_hidden_size": UNUSED_HEAD,
        "projection_dim": UNUSED_HEAD,
        "logit_scale_init_value": UNUSED_HEAD,
        "label_smoothing": TRAINING,
        **_BELOW,
    },
)
BLIP_VISION = Settings(
    used=_VISION_SIZES,
    fixed={"model_type": ("blip_vision_model",), "num_channels": (3,)},
    without_effect={
        "attention_dropout": TRAINING,
        "dropout": TRAINING,
        "projection_dim": UNUSED_HEAD,
        **NO_TEXT,
    },
)
BLIP_TEXT = Settings(
    used=(*_TEXT_SIZES, "bos_token_id", "sep_token_id", "pad_token_id"),
    fixed={
        "model_type": ("blip_text_model",),
        "is_decoder": (True,),  # else it has no cross-attention
        "tie_word_embeddings": (True,),
        "position_embedding_type": ("absolute",),
        **_ONE_STACK,
    },
    without_effect={
        "encoder_hidden_size": "always `vision_config.hidden_size`",
        "projection_dim": UNUSED_HEAD,
        "attention_probs_dropout_prob": TRAINING,
        "hidden_dropout_prob": TRAINING,
        "label_smoothing": TRAINING,
        "eos_token_id": "texts end with `sep_token_id`",
        "decoder_start_token_id": "texts begin with `bos_token_id`",
    },
)
CLIP = Settings(
    used=(
        "vision_config",
        "text_config",
        "vision_config_dict",
        "text_config_dict",
        "model_type",
        "projection_dim",
    ),
    fixed=_ONE_STACK,
    without_effect={
        "logit_scale_init_value": INITIAL,
        "tie_word_embeddings": "CLIP has no language-model head",
        **_BELOW,
    },
)
CLIP_VISION = Settings(
    used=_VISION_SIZES,
    fixed={"model_type": ("clip_vision_model",), "num_channels": (3,)},
    without_effect={
        "attention_dropout": TRAINING,
        "dropout": TRAINING,
        "projection_dim": "the one of `CLIPConfig` counts",
        **NO_TEXT,
    },
)
CLIP_TEXT = Settings(
    used=(*_TEXT_SIZES, "eos_token_id"),
    fixed={"model_type": ("clip_text_model",), **_ONE_STACK},
    without_effect={
        "attention_dropout": TRAINING,
        "dropout": TRAINING,
        "projection_dim": "the one of `CLIPConfig` counts",
        "tie_word_embeddings": "CLIP has no language-model head",
        "bos_token_id": TOKENIZER,
        "pad_token_id": TOKENIZER,
        "decoder_start_token_id": TOKENIZER,
    },
)
# CLIP's image processor crops; BLIP's is that of BLIP-2.
CLIP_IMAGE_PROCESSOR = dataclasses.replace(
    IMAGE_PROCESSOR,
    used=(*IMAGE_PROCESSOR.used, "crop_size"),
    fixed={**IMAGE_PROCESSOR.fixed, "do_center_crop": (True,)},
)
# Title: table, as docs/conversion.md lists them.
TABLES = {
    "`BlipConfig`": BLIP,
    "`BlipVisionConfig`": BLIP_VISION,
    "`BlipTextConfig`": BLIP_TEXT,
    "`CLIPConfig`": CLIP,
    "`CLIPVisionConfig`": CLIP_VISION,
    "`CLIPTextConfig`": CLIP_TEXT,
}
